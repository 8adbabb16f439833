"""Training of generators on paired tiles."""
