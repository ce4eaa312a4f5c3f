"""Counts of pixels, the metrics computed from them, and their confidence intervals."""
