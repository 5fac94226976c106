"""Evaluation of trained models: with labels, with new images, and by a new threshold."""
