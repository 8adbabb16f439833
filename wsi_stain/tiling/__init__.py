"""How a slide is cut into tiles and blocks, and how tiles are joined again."""
