"""Try to break the program: ``python -m benchmarks.faults PART``."""

from __future__ import annotations

import sys

from benchmarks.faults import campaign, images, models
P={'images':images.part,'models':models.models,'checkpoints':models.checkpoints}
if __name__ == "__main__":
    tally = campaign.run(sys.argv[1], P[sys.argv[1]], int(sys.argv[2]), jobs=2)
    print(tally.line(), tally.facts)
    for f in tally.failures:
        print(f.case, f.what, f.detail)
