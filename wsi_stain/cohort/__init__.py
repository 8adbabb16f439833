"""Many slides: sheet → plan → run → account, on this machine or a Dask cluster.

What became of every slide is said by files in the cohort's folder alone, so that any machine may ask.
"""
