"""A procedural H&E slide for the demo, tests and benchmarks: histology that no patient is in."""

from wsi_stain.phantom.slide import MPP_RANGE, level_sizes, render, tissue, write_slide

__all__ = ["MPP_RANGE", "level_sizes", "render", "tissue", "write_slide"]
