"""Judging virtual stains: optical density, metrics, reports."""
