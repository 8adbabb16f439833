"""Looking at slides while they are stained: the lazy virtual slide, and the viewer for the browser."""
