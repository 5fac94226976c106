"""Scoring of images: terms, anomaly maps, and their calibration on normal images."""
