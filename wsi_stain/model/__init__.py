"""Model bundles: lookup, verification, export and tile invariance."""
