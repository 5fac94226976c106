"""Splits normal images into those to train on and held-out ones, and into folds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.images.files import ImageFile
from anoscan.images.formats import is_archive

FEWEST_IMAGES = 8
FEWEST_TRAINED = 6
FEWEST_HELD_OUT = 50
LARGEST_HELD_OUT = 1 / 2  # share of all images, where one has many copies
LARGEST_STACK = 1 / 8  # share of all images in one file; a file with more is not kept together


def split(digests: Sequence[bytes], seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows to train on and rows to hold out, both sorted, by the seed and the file contents.

    File names and order do not matter. Rows with the same digest stay on the same side. Where a
    copy was trained on, a held-out image would not show how new images score.

    A `share` of the rows is held out, but at least `FEWEST_HELD_OUT`, or a quarter of all where
    that is less. Fewer are held out where so many are copies that too few rows would be left to
    train on.

    Raises
    ------
    InputError
        When one side would be empty, or too few images would be left to train on.
    """
    n, twins = len(digests), Counter(digests)
    if len(twins) == 1:
        raise InputError(
            "the training images are all the same picture: there is nothing to learn from.",
            hint="Give a folder with different images.",
        )
    wanted = max(round(share * n), min(FEWEST_HELD_OUT, n // 4), 1)
    if n - wanted < FEWEST_TRAINED:
        raise InputError(
            f"--held-out {share:g} of {n} images leaves {n - wanted} to learn from: at least "
            f"{FEWEST_TRAINED} are needed."
        )
    most = max(wanted, min(int(LARGEST_HELD_OUT * n), n - FEWEST_TRAINED))
    salt = seed.to_bytes(8, "little")
    held: set[bytes] = set()
    count = 0
    for digest in sorted(twins, key=lambda digest: hashlib.sha256(salt + digest).digest()):
        if count < wanted and count + twins[digest] <= most:
            held.add(digest)
            count += twins[digest]
    if not held:
        raise InputError(
            f"of {n} training images only {len(twins)} are different: too few to learn from.",
            hint="Give a folder with different images.",
        )
    apart = np.array([digest in held for digest in digests])
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def dealt(labels: Sequence[bytes], folds: int, generator: torch.Generator) -> list[np.ndarray]:
    """Deal the indices of `labels` to folds at random; equal labels stay in the same fold.

    Folds differ little in size, and the indices in each are sorted. There may be fewer folds than
    asked for, since none is empty.
    """
    places: dict[bytes, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    groups = list(places.values())
    found: list[list[int]] = [[] for _ in range(folds)]
    for number in torch.randperm(len(groups), generator=generator).tolist():
        min(found, key=len).extend(groups[number])
    return [np.sort(np.array(fold)) for fold in found if fold]


def together(images: Sequence[ImageFile], digests: Sequence[bytes]) -> list[bytes]:
    """Label each image for `split`, which keeps equal labels on one side.

    Copies have the same label, and so have the pages of one file, which resemble each other. Where
    a file holds more than `LARGEST_STACK` of all images, no pages are kept together: there are too
    few files to hold one out.
    """
    pages: dict[Path, list[bytes]] = {}
    for image, digest in zip(images, digests, strict=True):
        if _is_page(image):
            pages.setdefault(image.file, []).append(digest)
    if any(len(some) > LARGEST_STACK * len(digests) for some in pages.values()):
        return list(digests)
    whole = {file: hashlib.sha256(b"".join(sorted(some))).digest() for file, some in pages.items()}
    return [
        whole[image.file] if _is_page(image) else digest
        for image, digest in zip(images, digests, strict=True)
    ]


def _is_page(image: ImageFile) -> bool:
    return image.page is not None and not is_archive(image.file)


def check_count(readable: int, skipped: Sequence[Skipped] = ()) -> None:
    """Refuse to learn from too few images; the message counts the skipped files.

    It also gives the reason of the first of them.

    Raises
    ------
    InputError
        When fewer than `FEWEST_IMAGES` images are `readable`.
    """
    if readable < FEWEST_IMAGES:
        first = f"{len(skipped)} were skipped, the first: {skipped[0].reason}." if skipped else None
        raise InputError(
            f"{readable} readable images are too few to learn from: at least "
            f"{FEWEST_IMAGES} are needed, and 1,000 are good.",
            hint=first,
        )
