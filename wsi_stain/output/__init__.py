"""Writing outputs: encoding, pyramid, canvases, OME-TIFF and OME-Zarr."""
