"""The read-out of a whole H-DAB slide, real or virtual: how much DAB, where, and how certain the figures are."""
