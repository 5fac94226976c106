"""The part `images`: damaged files of every format, decoded as ``score`` decodes a folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from anoscan.images.decode import Decoded, ImageRule, decode
from anoscan.images.files import ImageFile, find
from anoscan.images.pool import Failed, read_all
from benchmarks.faults.campaign import Outcome, Plan, Tally, attempt_all
from benchmarks.faults.mutations import mutated

SIZE = 16
RULES = tuple(
    ImageRule(size=SIZE, channels=channels, window=window)
    for channels in (1, 3)
    for window in (None, (0.0, 65535.0))
)
# Limits of a file; they are documented, and much less than by default, as the files are small.
LIMITS = {"ANOSCAN_DECODE_SECONDS": "5", "ANOSCAN_DECODE_MB": "512"}
TOGETHER = 128  # files of one folder
_PAGES = 3  # that are decoded of a file
_ISOLATED = re.compile(r"ends its decoder|within [\d.]+ seconds|needs more than \d+ MB")

Read = Callable[[ImageFile], Decoded]


def images(plan: Plan, tally: Tally) -> None:
    """Try damaged images."""
    os.environ.update(LIMITS)
    attempt_all(attempt, plan, tally, together=TOGETHER)


def read(image: ImageFile) -> Decoded:
    """Decode a file by the rule of its number."""
    return decode(image, RULES[number_of(image) % len(RULES)])


def number_of(image: ImageFile) -> int:
    """Return the number of the case that a file is."""
    return int(image.file.name.split(".")[0])


def attempt(
    seed: int, numbers: Sequence[int], read: Read = read, workers: int = 1
) -> list[Outcome] | None:
    """Write the files of cases into a folder, find them, and decode them.

    None where several files are disturbed: by an error that is none of a file, or by lines on
    stderr.
    """
    folder = Path(tempfile.mkdtemp(prefix="anoscan-images-"))
    done = {}
    try:
        for number in numbers:
            sample, done[number] = mutated(seed, number)
            (folder / f"{number:08}{sample.suffix}").write_bytes(sample.data)
        with _stderr() as said:
            problems, isolated = _judged(folder, read, workers)
            if text := said():
                raise RuntimeError(f"writes to stderr: {text[:100]!r}")
    except Exception as error:
        if len(numbers) > 1:
            return None
        problems, isolated = {numbers[0]: f"{type(error).__name__}: {error}"}, {}
    finally:
        shutil.rmtree(folder)
    for number in numbers:
        if number not in problems:
            problems[number] = "is passed over without a word"
    return [_outcome(number, done[number], problems[number], isolated) for number in numbers]


def _outcome(number: int, what: str, problem: str, isolated: dict[int, str]) -> Outcome:
    if problem:
        return Outcome(number, "failed", what, problem)
    if number in isolated:
        return Outcome(number, "isolated", what, isolated[number])
    return Outcome(number, "held", what)


def _judged(folder: Path, read: Read, workers: int) -> tuple[dict[int, str], dict[int, str]]:
    """Return the problem of each file, empty where there is none, and why some were isolated."""
    pages: defaultdict[int, list[ImageFile]] = defaultdict(list)
    for image in find([folder]):
        pages[number_of(image)].append(image)
    files = [image for images in pages.values() for image in images[:_PAGES]]
    problems: dict[int, str] = {}
    isolated: dict[int, str] = {}
    for image, found in read_all(read, files, workers):
        number = number_of(image)
        if isinstance(found, Failed) and _ISOLATED.search(found.reason):
            isolated[number] = found.reason
        problem = _refusal(found.reason) if isinstance(found, Failed) else _pixels(found)
        problems[number] = problems.get(number) or problem
    return problems, isolated


def _refusal(reason: str) -> str:
    """Return what is wrong with a reason: it must be one plain line."""
    plain = reason.isprintable() and 0 < len(reason) <= 300 and "Error" not in reason
    return "" if plain else f"has the reason {reason!r}"


def _pixels(decoded: Decoded) -> str:
    pixels, channels = decoded.pixels, decoded.canvas.channels
    if pixels.shape != (channels, SIZE, SIZE) or pixels.dtype != np.float32:
        return f"has pixels of {pixels.dtype} {pixels.shape}"
    if not np.isfinite(pixels).all() or np.abs(pixels).max() > 3:
        return f"has pixels from {pixels.min()} to {pixels.max()}"
    return ""


@contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Catch what this process and its libraries write to stderr."""
    with tempfile.TemporaryFile() as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)

        def said() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
