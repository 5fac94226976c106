"""Try to break the program: ``python -m benchmarks.faults PART``."""

from __future__ import annotations

import sys

from benchmarks.faults import campaign, images

if __name__ == "__main__":
    tally = campaign.run("images", images.part, int(sys.argv[1]), jobs=2)
    print(tally.line(), tally.facts)
    for f in tally.failures:
        print(f.case, f.what, f.detail)
