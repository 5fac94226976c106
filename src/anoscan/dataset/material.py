"""The images that a training learns from, and the held-out ones that it is measured with.

They are whole images, or random patches of larger ones. Images are split, and patches follow their
image.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anoscan.core.arrays import Floats, allocate, evenly
from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError
from anoscan.core.results import Skipped
from anoscan.core.runtime import random_stream
from anoscan.dataset.image_array import ImageArray
from anoscan.dataset.split import FEWEST_IMAGES, check_count, split, together
from anoscan.images.canvas import TRIES
from anoscan.images.decode import Decoded, ImageRule, decode_all
from anoscan.images.files import ImageFile
from anoscan.images.mismatch import Look

UNSEEN = 512  # patches of held-out images, at most

OnRead = Callable[[int, int], None]


@dataclass(frozen=True)
class Material:
    """The images of one training, split into those to train on and held-out ones.

    Parameters
    ----------
    pixels : ndarray of shape (n, c, s, s), float32
        Images, or patches of them, as the networks see them.
    rows, unseen : ndarray of int
        Rows of `pixels` to train on, and those with held-out images, or random patches of them.
    images : list of ImageFile
        All readable images, in the order of the files.
    digests, looks : list
        SHA-256 of each of `images`, and its size, kind, brightness and sharpness.
    trained, held_out : ndarray of int
        Rows of `images` that are trained on, and that are held out.
    skipped : list of Skipped
    rule : ImageRule
    workers : int
        Number of threads that decode.
    """

    pixels: Floats
    rows: np.ndarray
    unseen: np.ndarray
    images: list[ImageFile]
    digests: list[bytes]
    looks: list[Look]
    trained: np.ndarray
    held_out: np.ndarray
    skipped: list[Skipped]
    rule: ImageRule
    workers: int

    @classmethod
    def load(
        cls,
        files: Sequence[ImageFile],
        rule: ImageRule,
        config: TrainConfig,
        *,
        workers: int,
        on_progress: OnRead,
    ) -> Material:
        """Decode the files and split them.

        With `config.patches`, files are read twice: first to split the readable ones, then to take
        patches, for which the split must be known.

        Raises
        ------
        InputError
            When too few images can be read, or there is no room for their pixels.
        """
        if config.patches is None:
            array, skipped = ImageArray.load(files, rule, workers=workers, on_progress=on_progress)
            train, held = _split(array.images, array.digests, skipped, config)
            return cls(
                array.pixels,
                rows=train,
                unseen=held,
                images=array.images,
                digests=array.digests,
                looks=array.looks,
                trained=train,
                held_out=held,
                skipped=skipped,
                rule=rule,
                workers=workers,
            )
        images, digests, looks, skipped = _read(files, rule, workers, on_progress)
        train, held = _split(images, digests, skipped, config)
        some = evenly(held, UNSEEN)
        unseen = len(some) * (UNSEEN // len(some))
        parts = [(train, config.patches), (some, unseen)]
        chosen = [([images[row] for row in rows], wanted) for rows, wanted in parts]
        pixels = _patches(chosen, rule, config.seed, workers, on_progress)
        # Patches are in random order, because the patch test pastes from the next one, which should
        # be of another image.
        order = torch.randperm(unseen, generator=random_stream(config.seed, "unseen-order"))
        return cls(
            pixels,
            rows=np.arange(config.patches),
            unseen=config.patches + order.numpy(),
            images=images,
            digests=digests,
            looks=looks,
            trained=train,
            held_out=held,
            skipped=skipped,
            rule=rule,
            workers=workers,
        )

    @classmethod
    def of_normals(
        cls,
        files: Sequence[ImageFile],
        rule: ImageRule,
        *,
        seed: int,
        workers: int,
        on_progress: OnRead,
        fewest: int = FEWEST_IMAGES,
    ) -> Material:
        """Decode images that are only measured; all are held out.

        Raises
        ------
        InputError
            When fewer than `fewest` images can be read.
        """
        if rule.patch is None:
            array, skipped = ImageArray.load(files, rule, workers=workers, on_progress=on_progress)
            pixels, found, digests, looks = array.pixels, array.images, array.digests, array.looks
            unseen = np.arange(len(pixels))
        else:
            found, digests, looks, skipped = _read(files, rule, workers, on_progress)
            some = [found[row] for row in evenly(np.arange(len(found)), UNSEEN)]
            wanted = len(some) * (UNSEEN // max(len(some), 1))
            pixels = _patches([(some, wanted)], rule, seed, workers, on_progress)
            order = torch.randperm(wanted, generator=random_stream(seed, "unseen-order"))
            unseen = order.numpy()
        if len(found) < fewest:
            raise InputError(
                f"{len(found)} readable images are too few to calibrate with: at least "
                f"{fewest} are needed, and 99 for a false-alarm rate of 1 %."
            )
        return cls(
            pixels,
            rows=np.arange(0),
            unseen=unseen,
            images=found,
            digests=digests,
            looks=looks,
            trained=np.arange(0),
            held_out=np.arange(len(found)),
            skipped=skipped,
            rule=rule,
            workers=workers,
        )

    def without(self, dropped: Collection[bytes]) -> Material:
        """Return the same without the images to train on whose digest is among `dropped`.

        Raises
        ------
        InputError
            When too few images to train on are left.
        """
        if not dropped:
            return self
        rows = np.array([row for row in self.trained if self.digests[row] not in dropped], int)
        if len(rows) < FEWEST_IMAGES:
            raise InputError(f"without the suspects {len(rows)} images are too few to learn from.")
        return dataclasses.replace(self, rows=rows, trained=rows)

    def some_held_out(self, n: int) -> Floats:
        """At most `n` held-out images (n, c, s, s); of large ones, the patch in the middle."""
        if self.rule.patch is None:
            return np.ascontiguousarray(self.pixels[evenly(self.held_out, n)])
        large = self.large(evenly(self.held_out, n))
        return np.stack([decoded.canvas.centre(self.rule.size) for decoded in large])

    def inside_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Where the whole images of these rows of `images` count; None where every place counts.

        A mask of bool, (s, s), or (n, s, s) where images of different proportions are padded.
        """
        if self.rule.patch is not None or (self.rule.roi is None and self.rule.fit != "pad"):
            return None
        sizes = [(self.looks[row].height, self.looks[row].width) for row in rows]
        masks = {size: self._inside(size) for size in set(sizes)}
        different = {mask.tobytes() for mask in masks.values()}
        return masks[sizes[0]] if len(different) == 1 else np.stack([masks[size] for size in sizes])

    def _inside(self, size: tuple[int, int]) -> np.ndarray:
        """Mask (s, s) of where an upright image of `size` (height, width) counts."""
        fit, roi = self.rule.fit_of(*size), self.rule.roi
        shape = (self.rule.size, self.rule.size) if fit is None else (fit.height, fit.width)
        inside = np.ones(shape, np.bool_) if roi is None else roi.part((0, 0), shape, shape)
        return inside if fit is None else fit.on_square(inside, False)

    @property
    def unseen_paths(self) -> tuple[str, ...]:
        """Paths of the images that are held out."""
        return tuple(self.images[row].path for row in self.held_out)

    @property
    def groups(self) -> list[bytes]:
        """Label of each image; those with the same label stay together. See `together`."""
        return together(self.images, self.digests)

    def large(self, rows: np.ndarray) -> Iterator[Decoded]:
        """Decode the images of these rows of `images` again, at their whole size."""
        return _decoded([self.images[row] for row in rows], self.rule, self.workers)


def _split(
    images: list[ImageFile], digests: list[bytes], skipped: list[Skipped], config: TrainConfig
) -> tuple[np.ndarray, np.ndarray]:
    check_count(len(digests), skipped)
    return split(together(images, digests), config.seed, config.held_out)


def _read(
    files: Sequence[ImageFile], rule: ImageRule, workers: int, on_progress: OnRead
) -> tuple[list[ImageFile], list[bytes], list[Look], list[Skipped]]:
    images: list[ImageFile] = []
    digests: list[bytes] = []
    looks: list[Look] = []
    skipped: list[Skipped] = []
    for done, outcome in enumerate(decode_all(files, rule, workers=workers), start=1):
        if isinstance(outcome, Skipped):
            skipped.append(outcome)
        else:
            images.append(outcome.image)
            digests.append(outcome.digest)
            looks.append(outcome.look)
        on_progress(done, len(files))
    return images, digests, looks, skipped


def _patches(
    parts: Sequence[tuple[Sequence[ImageFile], int]],
    rule: ImageRule,
    seed: int,
    workers: int,
    on_progress: OnRead,
) -> Floats:
    """Random patches (n, c, s, s) of several parts of the images, one part after the other.

    Images of a part give the same number of its wanted patches, or one more or less. The seed and
    the content of the image decide their places.
    """
    total = sum(wanted for _, wanted in parts)
    pixels = allocate((total, rule.channels, rule.size, rule.size))
    twins: Counter[bytes] = Counter()
    first = done = 0
    for images, wanted in parts:
        end = first
        for number, decoded in enumerate(_decoded(images, rule, workers), start=1):
            start, end = end, first + wanted * number // len(images)
            name = f"patches-{decoded.digest.hex()}"
            generator = random_stream(seed, name, twins[decoded.digest])
            twins[decoded.digest] += 1
            draws = torch.rand(end - start, TRIES, 2, generator=generator, dtype=torch.float64)
            pixels[start:end] = decoded.canvas.crops(rule.size, draws.numpy())
            done += 1
            on_progress(done, sum(len(some) for some, _ in parts))
        first += wanted
    return pixels


def _decoded(images: Sequence[ImageFile], rule: ImageRule, workers: int) -> Iterator[Decoded]:
    for outcome in decode_all(images, rule, workers=workers):
        if isinstance(outcome, Skipped):
            raise InputError(
                f"{outcome.path} could be read once and then no more: {outcome.reason}.",
                hint="Leave the images alone while they are trained on.",
            )
        yield outcome
