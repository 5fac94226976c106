"""Measure anoscan, baselines and other packages on real images, and keep results and tables."""

import os

# This must precede the imports of torch and NumPy. Each process has one thread, because two
# processes are faster than two threads.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
