"""Finding, decoding and masking image files, and cutting large images into tiles."""
