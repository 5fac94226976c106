"""One image: found, decoded, masked, cut into tiles."""
