"""Batches of slides: sheet → plan → run → account, on this machine or a Dask cluster.

The state of every slide is stored only in files in the cohort folder, so any machine that mounts it can read it.
"""
