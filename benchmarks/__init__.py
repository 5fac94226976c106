"""Measured comparisons on real images: data, defects, baselines, peers and the run itself."""

import os

# Before torch and NumPy are imported: one thread a process, two processes beat two threads.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
