"""Try to break the program: ``python -m benchmarks.faults PART``.

Each part prints one line, and the cases that failed; the exit code is 1 when one did. Its result is
kept in ``benchmarks/results/faults``, and the table in ``docs/reliability.md`` is written anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from benchmarks.faults import campaign, results

# Module and function of each part, and the number of cases that a release is tried with. Only the
# modules of parts that run are imported, here and in the processes that they start.
PARTS = {
    "kill": ("interrupted", "kill", 100),
    "disk": ("interrupted", "disk", 100),
    "streams": ("streams", "streams", 132),
    "images": ("images", "images", 50_000),
    "models": ("models", "models", 20_000),
    "checkpoints": ("models", "checkpoints", 2_000),
    "concurrency": ("together", "concurrency", 20),
    "load": ("together", "load", 100_000),
    "network": ("streams", "network", 11),
}


def part_of(name: str) -> campaign.Part:
    """Import the function of a part."""
    module, function, _ = PARTS[name]
    part: campaign.Part = getattr(import_module(f"benchmarks.faults.{module}"), function)
    return part


def main() -> None:
    """Run parts, or check the table of their last results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--count", type=int, help="cases of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--case", type=int, help="repeat one case, and keep no result")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the table is old")
    options = parser.parse_args()
    if options.check:
        sys.exit(results.table(check=True))
    chosen = list(PARTS) if options.parts == ["all"] else options.parts
    if not chosen or set(chosen) - PARTS.keys():
        parser.error(f"name parts: {', '.join(PARTS)}, or all")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="anoscan-faults-") as prepared:
        for name in chosen:
            failed += _try(name, options, Path(prepared))
    if options.case is None:
        results.table()  # at the end, since a changed document marks results as of changed code
    sys.exit(1 if failed else 0)


def _try(name: str, options: argparse.Namespace, prepared: Path) -> int:
    """Try a part, print and keep its result, and return how many cases failed."""
    own = {"seed": options.seed, "jobs": options.jobs, "only": options.case}
    tally = campaign.run(name, part_of(name), prepared, options.count or PARTS[name][2], **own)
    lines = [tally.line(), *(f"  {fact}: {value}" for fact, value in tally.facts.items())]
    lines += [f"  case {f.case}: {f.what}: {f.detail}" for f in tally.failures]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    if options.case is None:
        results.keep(tally, options.seed)
    return len(tally.failures)


if __name__ == "__main__":
    main()
