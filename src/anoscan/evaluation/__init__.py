"""A trained model is held against labels and new images."""
