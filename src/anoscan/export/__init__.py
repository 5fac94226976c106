"""A model as a graph that other programs run, and the check that both give the same results."""
