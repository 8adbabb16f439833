"""`python -m wsi_stain`."""

from wsi_stain.cli import main

main()
