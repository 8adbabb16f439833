"""Model bundles: find, verify, export, and check their tile invariance."""
