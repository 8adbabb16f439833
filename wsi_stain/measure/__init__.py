"""Measurements on images: stain densities, metrics, registration."""
