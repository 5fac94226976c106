"""Try to break the program: ``python -m benchmarks.faults PART``.

Each part prints one line, and the cases that failed; the exit code is 1 when one did. Its result is
kept in ``benchmarks/results/faults``. ``--check`` compares the table in ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.faults import campaign, images, interrupted, models, results, streams, together

# Parts with the number of cases that a release is tried with.
PARTS: dict[str, tuple[campaign.Part, int]] = {
    "kill": (interrupted.kill, 200),
    "disk": (interrupted.disk, 200),
    "streams": (streams.streams, len(streams.REDIRECTED) * len(streams.COMMANDS)),
    "images": (images.part, 50_000),
    "models": (models.models, 20_000),
    "checkpoints": (models.checkpoints, 2_000),
    "concurrency": (together.concurrency, 20),
    "load": (together.load, 100_000),
    "network": (streams.network, len(streams.OFFLINE)),
}


def main() -> None:
    """Run parts, or write the table of their last results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--count", type=int, help="cases of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--case", type=int, help="repeat one case, and keep no result")
    parser.add_argument("--table", action="store_true", help="write the table into the document")
    parser.add_argument("--check", action="store_true", help="exit with 1 if it is out of date")
    options = parser.parse_args()
    if options.table or options.check:
        sys.exit(results.table(check=options.check))
    chosen = list(PARTS) if options.parts == ["all"] else options.parts
    if not chosen or set(chosen) - PARTS.keys():
        parser.error(f"name parts: {', '.join(PARTS)}, or all")
    failed = 0
    for name in chosen:
        part, count = PARTS[name]
        tally = campaign.run(
            name, part, options.count or count,
            seed=options.seed, jobs=options.jobs, only=options.case,
        )  # fmt: skip
        lines = [tally.line(), *(f"  {name}: {value}" for name, value in tally.facts.items())]
        lines += [f"  case {f.case}: {f.what}: {f.detail}" for f in tally.failures]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        if options.case is None:
            results.keep(tally, options.seed)
        failed += len(tally.failures)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
