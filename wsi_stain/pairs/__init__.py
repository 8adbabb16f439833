"""Paired H&E and IHC tiles: reading, checking, leaks, report."""
