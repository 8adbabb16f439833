"""Locks, and the records of runs."""
