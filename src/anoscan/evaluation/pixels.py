"""Measure how well anomaly maps find the anomalous pixels that masks mark.

All figures are exact, whatever the number of pixels: scores are compared as float32, and no score
is put into a bin. Memory is bounded: pixels are sorted one run at a time, and full runs are kept in
a temporary file. There a normal pixel takes 4 bytes and an anomalous one takes 8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.results import BestDice, PixelReport
from anoscan.images import resampling

AUPRO_LIMIT = 0.3  # false-positive rate up to which the overlap of regions counts (MVTec AD)
RUN = 2**22  # pixels that are sorted at once
_STRIP = 2**20  # pixels of a map that are resampled at once
_LOW = np.uint64(32)  # bits of the region's number, which are the low bits, below the score

Keys = NDArray[np.unsignedinteger[Any]]


class PixelScores:
    """Pixels of some images: the score of each, and whether a mask marks it as anomalous.

    After `run` pixels, those in memory go to a temporary file.

    >>> with PixelScores() as pixels:                                  # doctest: +SKIP
    ...     for anomaly_map, mask in pairs:
    ...         pixels.add(anomaly_map, mask)
    ...     print(pixel_metrics([pixels]).aupro)
    """

    def __init__(self, run: int = RUN) -> None:
        self.images = 0
        self._sizes: list[NDArray[np.intp]] = []
        self._regions = 0
        self._normal, self._anomalous = _Runs(np.uint32, run), _Runs(np.uint64, run)

    def __enter__(self) -> PixelScores:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files."""
        self._normal.close()
        self._anomalous.close()

    def add(self, anomaly_map: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> None:
        """Take an image.

        Parameters
        ----------
        anomaly_map : ndarray of shape (h, w), float
            Scores of places, finite; a higher score is more anomalous. They are compared as
            float32. A map whose size differs from the mask's is resampled to it (bilinear).
        mask : ndarray of shape (height, width), bool
            True where the image is anomalous, at the image's own resolution.

        Raises
        ------
        ValueError
            When a score is not finite, or an array is empty or not two-dimensional.
        """
        scores, truth = np.asarray(anomaly_map, np.float32), np.asarray(mask, np.bool_)
        if scores.ndim != 2 or truth.ndim != 2 or not scores.size or not truth.size:
            raise ValueError(f"map {scores.shape} and mask {truth.shape} must be pictures")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        labels, (top, left) = self._label(truth)
        # Regions were numbered in the whole picture, so a region may cross strips.
        for start, strip in _strips(scores, *truth.shape):
            keys, here = _keys(strip), truth[start : start + len(strip)]
            self._normal.add(keys[~here])
            rows, columns = np.nonzero(here)
            if rows.size:
                region = labels[rows + start - top, columns - left].astype(np.uint64) - 1
                region += self._regions
                self._anomalous.add((keys[here].astype(np.uint64) << _LOW) | region)
        self._regions = sum(map(len, self._sizes))
        self.images += 1

    def _label(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """Number the 8-connected regions of a mask from 1, and remember their sizes.

        Returns the smallest part (h, w) that holds all regions, int32, and its first row and
        column.
        """
        from scipy import ndimage

        if not mask.any():
            return np.zeros((0, 0), np.int32), (0, 0)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        labels, _ = ndimage.label(part, structure=np.ones((3, 3)))
        self._sizes.append(np.bincount(labels.ravel())[1:])
        return labels, (int(rows[0]), int(columns[0]))


def pixel_metrics(parts: Sequence[PixelScores]) -> PixelReport:
    """Measure the pixels of several parts together.

    AUROC and average precision are over all pixels. AUPRO is the mean overlap of 8-connected
    regions, integrated over false-positive rates up to `AUPRO_LIMIT` and divided by it (Bergmann et
    al. 2020, arXiv:1911.02357). The best Dice coefficient is that of the best single threshold. It
    is optimistic, because the threshold is chosen with the masks. All are None unless there are
    both normal and anomalous pixels.

    Every distinct score of an anomalous pixel is a threshold. Between two of them only the
    false-positive rate changes, so no other threshold can change a figure.
    """
    sizes = [size for part in parts for size in part._sizes]
    weights = 1 / np.concatenate(sizes) if sizes else np.empty(0)
    normal = [run for part in parts for run in part._normal.sorted()]
    anomalous = []
    for number, part in enumerate(parts):
        offset = np.uint64(sum(other._regions for other in parts[:number]))
        anomalous += [(run, offset) for run in part._anomalous.sorted()]
    negatives = sum(map(len, normal))
    positives = sum(len(run) for run, _ in anomalous)
    counts: dict[str, Any] = {
        "images": sum(part.images for part in parts),
        "regions": len(weights),
        "pixels": negatives + positives,
        "anomalous_pixels": positives,
    }
    if not negatives or not positives:
        return PixelReport(
            auroc=None,
            average_precision=None,
            aupro=None,
            aupro_limit=AUPRO_LIMIT,
            best_dice=None,
            undefined="pixel metrics need both normal and anomalous pixels",
            **counts,
        )
    curve = _Curve(positives, negatives, len(weights))
    for keys, regions in _descending(anomalous):
        curve.add(keys, weights[regions], normal)
    return PixelReport(
        auroc=min(curve.auroc, 1.0),  # a sum of many shares can be above 1 by rounding
        average_precision=min(curve.precision, 1.0),
        aupro=min(curve.aupro(), 1.0),
        aupro_limit=AUPRO_LIMIT,
        best_dice=BestDice(dice=curve.dice, threshold=_score(curve.dice_key)),
        undefined=None,
        **counts,
    )


class _Runs:
    """Whole numbers in sorted runs: full runs are in a temporary file, the last one in memory."""

    def __init__(self, dtype: type[np.unsignedinteger[Any]], size: int) -> None:
        self._dtype, self._size = np.dtype(dtype), size
        self._waiting: list[Keys] = []
        self._count = 0
        self._file: IO[bytes] | None = None
        self._lengths: list[int] = []

    def add(self, keys: Keys) -> None:
        self._waiting.append(keys)
        self._count += len(keys)
        if self._count >= self._size:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="anoscan-")  # noqa: SIM115
            self._last().tofile(self._file)
            self._lengths.append(self._count)
            self._waiting, self._count = [], 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _last(self) -> Keys:
        return np.sort(np.concatenate([np.empty(0, self._dtype), *self._waiting]))

    def sorted(self) -> list[Keys]:
        """Return all runs, each in ascending order; none is empty."""
        runs: list[Keys] = []
        if self._file is not None:
            self._file.flush()
            offset = 0
            for length in self._lengths:
                runs.append(np.memmap(self._file, self._dtype, "r", offset, (length,)))
                offset += length * self._dtype.itemsize
        return [*runs, self._last()] if self._count else runs


class _Curve:
    """Sums over the thresholds, from the highest down, complete with the last anomalous pixel.

    `precision` is average precision, and `dice_key` is the key of the threshold of the best `dice`.
    """

    def __init__(self, positives: int, negatives: int, regions: int) -> None:
        self._positives, self._negatives, self._regions = positives, negatives, regions
        self.auroc = self.precision = self.dice = 0.0
        self.dice_key = np.uint32(0)
        self._true, self._rate, self._overlap, self._area = 0, 0.0, 0.0, 0.0

    def add(self, keys: Keys, weights: NDArray[np.float64], normal: Sequence[Keys]) -> None:
        """Take anomalous pixels in descending order of their keys (n,), all those of a key at once.

        `weights` (n,) are 1 / size of each pixel's region; `normal` has sorted runs of all normal
        keys.
        """
        ends = np.flatnonzero(np.diff(keys, append=keys[-1:] ^ np.uint32(1)))
        keys, held = keys[ends], np.diff(ends, prepend=-1)
        above, level = self._normal_at(keys, normal)
        true = self._true + ends + 1
        overlap = self._overlap + np.cumsum(weights)[ends] / self._regions
        pairs = held * (self._negatives - (above + level) / 2)
        self.auroc += float(pairs.sum() / self._positives / self._negatives)
        self.precision += float((held * (true / (true + level))).sum() / self._positives)
        dice = 2 * true / (true + level + self._positives)
        if dice.max() > self.dice:
            self.dice, self.dice_key = float(dice.max()), keys[int(dice.argmax())]
        # At each threshold the curve first goes on at the same overlap, up to where its ties
        # begin. From there it is a straight line to where they end.
        before = np.concatenate([[self._overlap], overlap[:-1]])
        rates = np.stack([above, level], 1).ravel() / self._negatives
        overlaps = np.stack([before, overlap], 1).ravel()
        self._integrate(rates, overlaps)
        self._true = int(true[-1])

    def _normal_at(self, keys: Keys, normal: Sequence[Keys]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Count the normal pixels above each key (n,), and those at or above it (n,)."""
        above, level = np.zeros((2, len(keys)), np.int64)
        for run in normal:
            above += len(run) - np.searchsorted(run, keys, side="right")
            level += len(run) - np.searchsorted(run, keys, side="left")
        return above, level

    def _integrate(self, rates: NDArray[np.float64], overlaps: NDArray[np.float64]) -> None:
        x = np.concatenate([[self._rate], rates])
        y = np.concatenate([[self._overlap], overlaps])
        width = np.diff(np.minimum(x, AUPRO_LIMIT))
        run = np.maximum(np.diff(x), 1e-300)
        end = y[:-1] + np.diff(y) * np.where(np.diff(x) > 0, width / run, 1.0)
        self._area += float((width * (y[:-1] + end) / 2).sum())
        self._rate, self._overlap = float(x[-1]), float(y[-1])

    def aupro(self) -> float:
        """Return the AUPRO; after the last threshold the overlap stays as it is."""
        rest = max(AUPRO_LIMIT - self._rate, 0.0) * self._overlap
        return (self._area + rest) / AUPRO_LIMIT


def _descending(
    runs: Sequence[tuple[Keys, np.uint64]],
) -> Iterator[tuple[Keys, NDArray[np.intp]]]:
    """Merge sorted runs, and yield keys (n,) and regions (n,) from the highest score down.

    Each part has about `RUN` pixels. Pixels of the same score always come in the same part. Each
    run comes with what is added to the numbers of its regions.
    """
    step = max(1, RUN // (8 * len(runs)))
    sample = np.sort(np.concatenate([run[::step] for run, _ in runs])) >> _LOW
    borders = np.unique(sample[:: max(1, RUN // step)]) << _LOW
    ends = [len(run) for run, _ in runs]
    for border in borders[::-1]:
        starts = [int(np.searchsorted(run, border)) for run, _ in runs]
        starts = [0] * len(runs) if border == borders[0] else starts
        pieces = [
            np.asarray(run[start:end]) + offset
            for (run, offset), start, end in zip(runs, starts, ends, strict=True)
        ]
        merged = np.sort(np.concatenate(pieces))[::-1]
        ends = starts
        if merged.size:
            low = merged & np.uint64(0xFFFFFFFF)
            yield (merged >> _LOW).astype(np.uint32), low.astype(np.intp)


def _keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers that have the order of the scores, and are equal where scores are."""
    bits = (scores + np.float32(0)).view(np.uint32)  # this turns -0 into 0
    negative = bits >> np.uint32(31) == 1
    keys: NDArray[np.uint32] = np.where(negative, ~bits, bits | np.uint32(1 << 31))
    return keys


def _score(key: np.unsignedinteger[Any]) -> float:
    """Return the score that `_keys` made a key of."""
    number = int(key)
    bits = number ^ (1 << 31) if number >> 31 else number ^ 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _strips(
    scores: NDArray[np.float32], height: int, width: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield a map resampled to (height, width) in strips from the top, each after its first row."""

    def read(top: int, end: int) -> NDArray[np.float32]:
        return scores[top:end]

    size, rows = (scores.shape[0], scores.shape[1]), max(1, _STRIP // width)
    return resampling.strips(read, size, (height, width), rows)
