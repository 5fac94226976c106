"""Try to break the program, and count what held: ``python -m benchmarks.faults PART``."""
