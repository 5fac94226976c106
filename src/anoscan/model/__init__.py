"""A trained model, its file, and its verdict on an image."""
