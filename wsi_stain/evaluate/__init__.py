"""Evaluation of virtual stains: optical density, metrics, reports."""
