"""Builders of the tests' inputs: slides, pairs, runs, cohorts, and readers of outputs."""
