"""Figures of pictures: stain densities, metrics, registration."""
