"""Inspects a training folder, to find how its files become what the networks see."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from anoscan.core.arrays import Floats
from anoscan.core.channels import AS_STORED, PLAIN_CHANNELS, channels_named
from anoscan.core.config import LARGEST_SIZE, SMALLEST_SIZE, TrainConfig
from anoscan.core.errors import InputError
from anoscan.images import masks
from anoscan.images.decode import ImageRule, shallow_image
from anoscan.images.files import ImageFile
from anoscan.images.formats.picture import EXTRAS, KINDS, Opened, damage
from anoscan.images.pool import Failed, read_all
from anoscan.images.roi import Roi

_LARGEST_AUTO_SIZE = 128
_INSPECTED = 512  # files, at most
_INSPECTED_PIXELS = 16_384  # of one deep image, at most


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in a folder of images, and the rule that follows from it.

    Parameters
    ----------
    rule : ImageRule
        How files become what the networks see.
    sizes, bit_depths : dict of str to int
        Numbers of inspected images by upright "WIDTHxHEIGHT", and by kind, such as "8-bit grey".
    inspected : int
        Number of inspected images that could be read and have room for a patch. No other images are
        counted above.
    """

    rule: ImageRule
    sizes: dict[str, int]
    bit_depths: dict[str, int]
    inspected: int


@dataclass(frozen=True)
class _Look:
    """What inspection keeps of one upright image; `samples` is None for 8 bits.

    `many` is the number of channels; None for grey and for colours. Deep samples start with their
    minimum and maximum.
    """

    width: int
    height: int
    bit_depth: str
    colour: bool
    samples: Floats | None
    many: int | None = None


def inspect(
    files: Sequence[ImageFile], config: TrainConfig, workers: int, roi: Roi | None = None
) -> Inspection:
    """Find out how images become tensors, from at most 512 of the files, drawn by the seed.

    A size of None becomes the size of patches. For whole images it becomes the median of the longer
    sides (of cropped images, the shorter ones), rounded to a multiple of 4, from 16 to 128.
    Channels of None become 1 where no image has a colour, else 3; where most images have the same
    other number, they become that. Deep images give the window: the
    0.05 % and 99.95 % quantiles of their samples. It goes from the minimum to the maximum instead
    where that is less than 1.5 times as wide, or where the quantiles are equal. Only samples inside
    `roi` count, where there is one.

    Raises
    ------
    InputError
        When none of the files can be read, or all are smaller than a patch.
    """
    size, channels, patch = config.size, config.channels, config.patch
    chosen = list(files)
    if len(files) > _INSPECTED:
        drawn = sorted(random.Random(config.seed).sample(range(len(files)), _INSPECTED))
        chosen = [files[index] for index in drawn]
    results = _all_looks(chosen, workers, channels or AS_STORED, roi)
    if channels is None and (found := _manys(results)):
        channels = next((many for many, count in found.items() if 2 * count > found.total()), None)
        if len(found) > 1:
            results = _all_looks(chosen, workers, channels or PLAIN_CHANNELS[-1], roi)
    large_enough = [_within(look, patch) for look in results]
    looks = [look for look in large_enough if isinstance(look, _Look)]
    if not looks:
        first = f" {chosen[0].path}: {large_enough[0]}." if chosen else ""
        kinds = f"Images are {KINDS} files of at least 2x2 pixels. {EXTRAS}"
        if channels is not None and channels not in PLAIN_CHANNELS:
            kinds = f"Arrays of {channels} channels are HxWx{channels} or Nx{channels}xHxW."
        readable = any(isinstance(look, _Look) for look in results)
        raise InputError(
            f"none of the {len(chosen)} images looked at can be {'used' if readable else 'read'}."
            f"{first}",
            hint="Give a smaller --patch-size." if readable else kinds,
        )
    if size is None and patch is not None:
        size = patch
    elif size is None:
        seen = min if config.fit == "crop" else max
        side = statistics.median(seen(look.width, look.height) for look in looks)
        size = min(max(4 * math.floor(side / 4 + 0.5), SMALLEST_SIZE), _LARGEST_AUTO_SIZE)
    if channels is None:
        channels = 3 if any(look.colour for look in looks) else 1
    shown = config.show_channels
    window = _window([look.samples for look in looks if look.samples is not None])
    return Inspection(
        rule=ImageRule(
            size=size,
            channels=channels,
            window=window,
            patch=patch,
            fit=config.fit,
            shown=None if shown is None else channels_named(shown, channels),
        ),
        sizes=dict(Counter(f"{look.width}x{look.height}" for look in looks)),
        bit_depths=dict(Counter(look.bit_depth for look in looks)),
        inspected=len(looks),
    )


def _all_looks(
    files: Sequence[ImageFile], workers: int, channels: int, roi: Roi | None
) -> list[_Look | str]:
    """Return what inspection keeps of each image, or the reason why there is nothing."""
    read = read_all(partial(_look, roi=roi, channels=channels), files, workers)
    return [found.reason if isinstance(found, Failed) else found for _, found in read]


def _manys(results: Sequence[_Look | str]) -> Counter[int | None]:
    """Count the images by their number of channels; None is for grey and for colours."""
    return Counter(look.many for look in results if isinstance(look, _Look))


def _within(look: _Look | str, patch: int | None) -> _Look | str:
    """Return what was given where a patch fits in the image; else why it cannot be used."""
    if isinstance(look, str) or patch is None or min(look.width, look.height) >= patch:
        return look
    return f"is {look.width}x{look.height} pixels: smaller than the patches of {patch}x{patch}"


def _look(image: ImageFile, roi: Roi | None, channels: int) -> _Look:
    """Read an image, and keep what inspection needs; raise InputError with the bare reason."""
    with damage():
        opened = _opened(image, channels)
        width, height = opened.width, opened.height
        if opened.orientation >= 5:
            width, height = height, width
        picture = opened.picture
        if not isinstance(picture, Image.Image):
            colour = picture.ndim == 3 and bool(np.ptp(picture, axis=2).any())
            counted = picture
            if roi is not None:
                turned = masks.UPRIGHT_ARRAYS[opened.pending](picture)
                inside = roi.part((0, 0), turned.shape[:2], turned.shape[:2])
                counted = turned[inside] if inside.any() else picture
            deep = None if picture.dtype == np.uint8 else _samples(counted)
            return _Look(width, height, opened.depth, colour, deep, opened.many)
        red, green, blue = shallow_image(picture, 3).split()
        differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
        colour = any(difference.getbbox() for difference in differences)
        return _Look(width, height, "8-bit colour" if colour else "8-bit grey", colour, None)


def _opened(image: ImageFile, channels: int) -> Opened:
    try:
        return image.read(draft_side=2 * LARGEST_SIZE, deep=True, channels=channels)
    except InputError:
        # A package that reads it at full depth may be missing. At 8 bits it may still be readable.
        return image.read(draft_side=2 * LARGEST_SIZE, deep=False, channels=channels)


def _samples(samples: NDArray[Any]) -> Floats:
    flat = samples.ravel()
    step = -(-flat.size // _INSPECTED_PIXELS)
    # The step must share no factor with the length of a row. Otherwise every sample could come from
    # one column.
    while math.gcd(step, math.prod(samples.shape[1:])) > 1:
        step += 1
    return np.concatenate([[flat.min(), flat.max()], flat[::step]], dtype=np.float32)


def _window(samples: list[Floats]) -> tuple[float, float] | None:
    if not samples:
        return None
    low = min(float(image[0]) for image in samples)
    high = max(float(image[1]) for image in samples)
    inner_low, inner_high = np.quantile(
        np.concatenate([image[2:] for image in samples], dtype=np.float64), [0.0005, 0.9995]
    ).tolist()
    # A few hot or dead pixels must not stretch the range. Where both quantiles are the same, sparse
    # bright spots may be all that there is.
    if inner_high > inner_low and high - low >= 1.5 * (inner_high - inner_low):
        low, high = inner_low, inner_high
    if high <= low:
        high = low + max(1.0, abs(low) * 1e-3)
    return low, high
