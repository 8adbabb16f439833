"""Atomic writes, locks, records of runs, tables, and HTML pages."""
