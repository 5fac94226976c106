"""Inspects, counts, reads and splits the images of a folder."""
