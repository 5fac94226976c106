"""A folder becomes a model, and the model is checked."""
