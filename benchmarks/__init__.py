"""Measured comparisons on real images: data, defects, baselines, peers and the run itself."""
