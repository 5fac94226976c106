"""Training: networks, terms and calibration from a folder of images, and checks of the model."""
