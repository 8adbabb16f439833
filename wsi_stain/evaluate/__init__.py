"""Evaluation of virtual stains: pixels, metrics over fields, baselines, reports."""
