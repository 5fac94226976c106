"""Plant synthetic local defects, whose place is known, into normal images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CROP = 64
TRAIN_CROPS = 1500
TEST_CROPS = 400

Grey = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_SMALLEST_SIDE = 16
_TRIES = 20
# A defect that nobody can see would be a wrong label. So the mean change over the mask must be at
# least this share of the value range, which is about five of 256 grey levels.
_LEAST_CHANGE = 0.02


class Defect(NamedTuple):
    """Holds an image with one defect.

    Attributes
    ----------
    image : ndarray (h, w)
        Changed copy of an image, in the dtype and value range of the original.
    mask : ndarray of bool (h, w)
        Pixels that the defect covers; no pixel outside is changed.
    kind : str
        Kind of the defect, one of `KINDS`.
    """

    image: npt.NDArray[Any]
    mask: Mask
    kind: str


class Crops(NamedTuple):
    """Holds square crops to learn from and to test on.

    Attributes
    ----------
    train : ndarray uint8 (TRAIN_CROPS, CROP, CROP)
        Crops without defects.
    test : ndarray uint8 (TEST_CROPS, CROP, CROP)
        Crops; each one in the second half has one defect.
    masks : ndarray of bool (TEST_CROPS, CROP, CROP)
        Pixels of the defects; all False for a crop without a defect.
    """

    train: npt.NDArray[np.uint8]
    test: npt.NDArray[np.uint8]
    masks: Mask


def defective(
    image: npt.NDArray[Any],
    rng: np.random.Generator,
    donor: npt.NDArray[Any],
    *,
    kind: str | None = None,
) -> Defect:
    """Copy an image, and plant one visible local defect in the copy.

    Kinds are tried in random order, each at several places, because blurring a smooth spot makes no
    defect. The first defect that changes its pixels by two per cent of the value range, on average,
    is taken.

    Parameters
    ----------
    image : ndarray uint8 in 0..255 or float in [-1, 1], (h, w)
        Normal image of at least 16 pixels a side, which is not changed.
    rng : numpy.random.Generator
        Source of all random numbers.
    donor : ndarray (h2, w2), dtype and range of `image`
        Another image, from which 'cut-paste' takes a patch.
    kind : {'cut-paste', 'scratch', 'blob', 'blur'}, optional
        Kind of the defect; any kind by default.

    Raises
    ------
    ValueError
        For images that are too small or not grey, for an unknown kind, and when no defect can be
        seen (as a blur of a constant image).
    """
    for array in (image, donor):
        if array.ndim != 2 or min(array.shape) < _SMALLEST_SIDE:
            raise ValueError(f"defects need grey images of 16 pixels a side, not {array.shape}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown defect {kind!r}: choose from {', '.join(KINDS)}")
    unit, unit_donor = _to_unit(image), _to_unit(donor)
    for name in [kind] if kind else rng.permutation(list(KINDS)).tolist():
        for _ in range(_TRIES):
            changed, mask = KINDS[name](unit, rng, unit_donor)
            result = image.copy()
            result[mask] = _from_unit(changed[mask], image.dtype)
            if np.abs(_to_unit(result) - unit)[mask].mean() >= _LEAST_CHANGE:
                return Defect(result, mask, name)
    raise ValueError(f"no visible defect ({kind or 'any kind'}) could be put into this image")


def crops(
    train_sources: Sequence[npt.NDArray[np.uint8]],
    test_sources: Sequence[npt.NDArray[np.uint8]],
    rng: np.random.Generator,
) -> Crops:
    """Cut random crops from two sets of grey images, and plant a defect in half the test crops.

    Parameters
    ----------
    train_sources, test_sources : sequences of ndarray uint8 (h, w)
        Images of at least `CROP` pixels a side. The two sets must have no pixel in common, so that
        no test crop was trained on.
    rng : numpy.random.Generator
        Source of all random numbers.
    """
    train = _cut(train_sources, TRAIN_CROPS, rng)
    test = _cut(test_sources, TEST_CROPS, rng)
    clean = test.copy()
    masks = np.zeros(test.shape, dtype=bool)
    for index in range(TEST_CROPS // 2, TEST_CROPS):
        other = (index + rng.integers(1, TEST_CROPS)) % TEST_CROPS
        test[index], masks[index], _ = defective(clean[index], rng, clean[other])
    return Crops(train, test, masks)


def _cut(
    sources: Sequence[npt.NDArray[np.uint8]], count: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    result = np.empty((count, CROP, CROP), dtype=np.uint8)
    for index in range(count):
        source = sources[int(rng.integers(len(sources)))]
        result[index] = source[_window(source.shape, (CROP, CROP), rng)]
    return result


def _window(
    shape: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    top = int(rng.integers(shape[0] - size[0] + 1))
    left = int(rng.integers(shape[1] - size[1] + 1))
    return slice(top, top + size[0]), slice(left, left + size[1])


def _to_unit(image: npt.NDArray[Any]) -> Grey:
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255
    return (image.astype(np.float64) + 1) / 2


def _from_unit(values: Grey, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    values = np.clip(values, 0, 1)
    if dtype == np.uint8:
        return np.rint(values * 255).astype(np.uint8)
    return (values * 2 - 1).astype(dtype)


def _contrast(rng: np.random.Generator) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5))


def _cut_paste(image: Grey, rng: np.random.Generator, donor: Grey) -> tuple[Grey, Mask]:
    size = int(rng.integers(4, 17)), int(rng.integers(4, 17))
    target = _window(image.shape, size, rng)
    changed, mask = image.copy(), np.zeros(image.shape, dtype=bool)
    changed[target] = donor[_window(donor.shape, size, rng)]
    mask[target] = True
    return changed, mask


def _scratch(image: Grey, rng: np.random.Generator, donor: Grey) -> tuple[Grey, Mask]:
    height, width = image.shape
    centre = np.array([rng.uniform(0, height - 1), rng.uniform(0, width - 1)])
    angle, half_length = rng.uniform(0, np.pi), rng.uniform(6, 20)
    direction = np.array([np.sin(angle), np.cos(angle)])
    offset = np.moveaxis(np.indices(image.shape), 0, -1) - centre
    along = np.clip(offset @ direction, -half_length, half_length)
    distance = np.linalg.norm(offset - along[..., None] * direction, axis=-1)
    cover = np.clip(rng.uniform(1, 2) / 2 + 0.5 - distance, 0, 1)
    return image + _contrast(rng) * cover, cover > 0


def _blob(image: Grey, rng: np.random.Generator, donor: Grey) -> tuple[Grey, Mask]:
    height, width = image.shape
    rows, columns = np.indices(image.shape)
    distance = np.hypot(rows - rng.uniform(0, height - 1), columns - rng.uniform(0, width - 1))
    cover = np.clip(1 - (distance / rng.uniform(2, 6)) ** 2, 0, None)
    return image + _contrast(rng) * cover, cover > 0


def _blur(image: Grey, rng: np.random.Generator, donor: Grey) -> tuple[Grey, Mask]:
    side = int(rng.integers(8, 17))
    mask = np.zeros(image.shape, dtype=bool)
    mask[_window(image.shape, (side, side), rng)] = True
    return ndimage.gaussian_filter(image, rng.uniform(1.5, 3)), mask


KINDS: dict[str, Callable[[Grey, np.random.Generator, Grey], tuple[Grey, Mask]]] = {
    "cut-paste": _cut_paste,  # a patch of 4 to 16 pixels a side from another place
    "scratch": _scratch,  # a line one or two pixels wide, 12 to 40 long
    "blob": _blob,  # a soft spot of radius 2 to 6
    "blur": _blur,  # a window of 8 to 16 pixels out of focus
}
