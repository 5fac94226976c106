"""A folder of images: inspected, counted, read, split."""
