"""Tissue: detection on a thumbnail, masks, GeoJSON import and export."""
