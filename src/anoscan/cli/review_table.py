"""Say what labelled images did to a calibration, and what the threshold says of them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from anoscan.core.files import printable
from anoscan.core.results import Review

_SHOWN = 10  # paths of missed anomalies


def lines(review: Review) -> Iterator[Text]:
    """Yield lines about the normal images, then about the anomalies, then about the others."""
    moved = (
        "The threshold stays"
        if review.threshold == review.threshold_before
        else f"The threshold moved from {review.threshold_before:.4g} to {review.threshold:.4g}"
    )
    known = f" The other {review.known:,} had joined before, or are copies." if review.known else ""
    yield Text(
        f"uses labels: {review.joined:,} of {review.normal:,} labelled normal images joined the "
        f"images that calibrate the model.{known} {moved}. Of these normal images, "
        f"{review.alarms:,} are called anomalous now, {review.alarms_before:,} were before."
    )
    if review.anomalous:
        yield Text(
            f"{review.found:,} of {review.anomalous:,} labelled anomalies are found, "
            f"{review.found_before:,} were before. They had no part in the threshold."
        )
    for path in review.missed[:_SHOWN]:
        yield Text(f"  missed: {printable(path)}")
    if len(review.missed) > _SHOWN:
        yield Text(f"  and {len(review.missed) - _SHOWN:,} more (--json has all)")
    if review.missing:
        shown = ", ".join(printable(path) for path in review.missing[:3])
        yield Text(f"{len(review.missing):,} labels have no image: {shown}")
