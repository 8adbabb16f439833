"""Registration of two slides of the same block: from both images to a transform, and a verdict on it."""
