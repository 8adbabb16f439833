"""From two slides to training pairs: register, cut, report."""
