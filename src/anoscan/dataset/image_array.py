"""The pixels of a training folder, in memory or in a temporary file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anoscan.core.arrays import IN_MEMORY, Floats, allocate
from anoscan.core.results import Skipped
from anoscan.images.decode import ImageRule, decode_all
from anoscan.images.files import ImageFile
from anoscan.images.mismatch import Look


class ImageArray:
    """The readable images of a training folder, each decoded once.

    Attributes
    ----------
    pixels : ndarray, (n, channels, size, size) float32
        In memory, or mapped from a temporary file that is deleted once closed.
    images : list of ImageFile
        One for each entry of `pixels`, in the order of the files given.
    digests : list of bytes
        SHA-256 of each file, or of the samples of a page. Copies under other names have the same.
    looks : list of Look
        Size, kind, brightness and sharpness of each image.
    """

    def __init__(
        self,
        pixels: Floats,
        images: list[ImageFile],
        digests: list[bytes],
        looks: list[Look],
    ) -> None:
        self.pixels = pixels
        self.images = images
        self.digests = digests
        self.looks = looks

    @classmethod
    def load(
        cls,
        files: Sequence[ImageFile],
        rule: ImageRule,
        *,
        workers: int,
        on_progress: Callable[[int, int], None] | None = None,
        in_memory: int = IN_MEMORY,
    ) -> tuple[ImageArray, list[Skipped]]:
        """Decode `files` in `workers` threads; leave out and list those that cannot be read.

        `on_progress` is called after each file with the number of files done and of all files. More
        than `in_memory` bytes of pixels are held in a temporary file.

        Raises
        ------
        InputError
            When the temporary folder has no room for the pixels.
        """
        pixels = allocate((len(files), rule.channels, rule.size, rule.size), in_memory)
        images: list[ImageFile] = []
        digests: list[bytes] = []
        looks: list[Look] = []
        skipped: list[Skipped] = []
        for done, result in enumerate(decode_all(files, rule, workers=workers), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                pixels[len(images)] = result.pixels
                images.append(result.image)
                digests.append(result.digest)
                looks.append(result.look)
            if on_progress is not None:
                on_progress(done, len(files))
        return cls(pixels[: len(images)], images, digests, looks), skipped

    def __len__(self) -> int:
        return len(self.images)
