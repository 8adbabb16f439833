"""Whether a slide is like those that a model was trained on, and where it is not."""
