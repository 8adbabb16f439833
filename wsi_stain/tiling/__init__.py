"""Splits a slide into tiles and blocks, and blends tiles into blocks."""
