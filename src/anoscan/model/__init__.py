"""Trained models: their content, their files, and how they judge images."""
