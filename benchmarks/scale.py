"""Measure what goes beyond one machine and one runtime: ``python -m benchmarks.scale PART --help``.

- ``torchrun`` trains one model with several processes.
- ``storage`` scores on Ray, and lists and fetches images from memory and from an S3 server.
- ``export`` compares exported models with torch.
- ``measure`` measures the small steps of large runs, and ``model`` simulates these from them.
"""

from __future__ import annotations

import importlib
import sys

PARTS = ("torchrun", "storage", "export", "measure", "model")


def main() -> None:
    """Run the part that is named first, with the other arguments."""
    part, *arguments = sys.argv[1:] or ["--help"]
    if part not in PARTS:
        sys.stderr.write(f"{__doc__}\n")
        sys.exit(0 if part == "--help" else 2)
    sys.exit(importlib.import_module(f"benchmarks.scale_{part}").main(arguments))


if __name__ == "__main__":
    main()
