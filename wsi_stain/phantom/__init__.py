"""A procedural H&E slide for the demo, tests and benchmarks: it contains no patient data."""

from wsi_stain.phantom.slide import MPP_RANGE, level_sizes, render, tissue, write_slide

__all__ = ["MPP_RANGE", "level_sizes", "render", "tissue", "write_slide"]
