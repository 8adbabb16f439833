"""Where tissue is: detection on a thumbnail, masks, GeoJSON in and out."""
