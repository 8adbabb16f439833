"""Reading slides: levels, pixel size, colour profile, and views at any scale."""
