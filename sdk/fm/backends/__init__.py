"""Seam 1: where runs are kept and asked for. `base` holds the seam itself."""
