"""The result of every reader: one image in samples, or the reason why there is none.

The content of files is not trusted. Readers raise `InputError`; its message is the bare reason,
without the path.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.channels import AS_STORED, MOST_CHANNELS, PLAIN_CHANNELS
from anoscan.core.errors import InputError

Deep = NDArray[np.uint16] | NDArray[np.float32]
Many = NDArray[np.uint8] | Deep

MOST_PAGES = 100_000
LARGEST_FILE = 2 * 1024**3  # bytes of a file, or of a part of it that is read at once
# Errors that decoders raise on damaged files, known from their source and from fuzzing.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AssertionError,
    struct.error,
    zlib.error,
)
_LIBRARIES = re.compile(r"(PIL|tifffile|pydicom|nibabel|anoscan\.images\.formats)\.")
_filters_lock = threading.Lock()
KINDS = "PNG, JPEG, TIFF, BMP, WebP, GIF, PNM, NumPy, DICOM, NIfTI, HDF5 or video"
EXTRAS = "The last four need an extra (dicom, nifti, hdf5, video): pip install 'anoscan[hdf5]'."
DAMAGED = "damaged image"
NO_ROOM = "needs more memory than there is"


@dataclass(frozen=True)
class Opened:
    """A decoded image.

    Parameters
    ----------
    picture : Image or ndarray
        With 8 bits, a Pillow image in any of its modes. With more bits, finite samples (height,
        width) or (height, width, 3), uint16 or float32. Of many channels, finite samples (height,
        width, n), uint8, uint16 or float32.
    width, height : int
        Size in pixels of the image as stored.
    digest : bytes
        SHA-256 of the file's bytes; for a page, of its samples.
    depth : str
        Depth of more than 8 bits in words, such as "16-bit grey" or "32-bit float"; else empty. Of
        many channels, also their number, such as "8-bit 5-channel".
    full : (low, high)
        Deep sample values that become -1 and 1 in a model that never learned a range.
    orientation, pending : int
        EXIF orientation, and the one that is still to be applied to `picture`, both 1 to 8.
    """

    picture: Image.Image | Many
    width: int
    height: int
    digest: bytes = b""
    depth: str = ""
    full: tuple[float, float] = (0.0, 65535.0)
    orientation: int = 1
    pending: int = 1

    @property
    def many(self) -> int | None:
        """Number of the channels; None for grey and for colours."""
        if isinstance(self.picture, Image.Image) or self.picture.ndim == 2:
            return None
        count = int(self.picture.shape[2])
        return None if count in PLAIN_CHANNELS else count

    def checked(self, channels: int) -> Opened:
        """Return the image where it has so many channels.

        Grey and colours become each other. `AS_STORED` takes any number.

        Raises
        ------
        InputError
            When it has another number of channels, or too many.
        """
        found, plain = self.many, channels in PLAIN_CHANNELS
        if found is not None and found > MOST_CHANNELS:
            raise InputError(f"has {found} channels: at most {MOST_CHANNELS} are read")
        if channels == AS_STORED or found == (None if plain else channels):
            return self
        has = "is grey or in colour" if found is None else f"has {found} channels"
        wants = "grey or in colour" if plain else f"of {channels} channels"
        raise InputError(f"{has}, and the images of the model are {wants}")


def are_channels(count: int, channels: int) -> bool:
    """Whether the samples of a pixel are channels, and neither grey nor colours with an opacity.

    `channels` are asked for; two samples of an array are two channels unless grey or colours are.
    """
    if channels in PLAIN_CHANNELS:
        return count > 4
    return count == channels or (count not in (*PLAIN_CHANNELS, 4) and count > 1)


def of_samples(
    samples: NDArray[Any],
    *,
    stored: np.dtype[Any] | None = None,
    full: tuple[float, float] | None = None,
    many: bool = False,
) -> Opened:
    """Make an image of samples (height, width) or (height, width, n) of any real type.

    They are grey (n = 1), RGB (3), or either with opacity last (2, 4), which is laid over black.
    With `many` they are n channels. Unsigned 8-bit samples and bools run from black to white. Other
    types keep their values.

    Parameters
    ----------
    stored : dtype, optional
        Type of the samples in the file, where `samples` are scaled values.
    full : (low, high), optional
        See `Opened`. By default it is 0 to 1 for floats, and all that the stored type can hold
        for other types.

    Raises
    ------
    InputError
        When samples are not finite real numbers, or `check_size` refuses the size.
    """
    height, width = samples.shape[:2]
    check_size(width, height)
    stored = stored or samples.dtype
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[..., 0]
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * np.uint8(255)
    if samples.dtype.kind not in "iuf":
        raise InputError(f"holds {samples.dtype} samples, which are no grey levels")
    if many:
        return _of_channels(samples, stored, full or full_range(stored))
    if samples.dtype == np.uint8:
        return Opened(Image.fromarray(np.ascontiguousarray(samples)), width, height)
    if samples.ndim == 3:
        samples = _over_black(samples)
    kind = "float" if stored.kind == "f" else "colour" if samples.ndim == 3 else "grey"
    if full is None:
        full = full_range(stored)
    depth = f"{8 * stored.itemsize}-bit {kind}"
    return Opened(finite(samples), width, height, depth=depth, full=full)


def _of_channels(samples: NDArray[Any], stored: np.dtype[Any], full: tuple[float, float]) -> Opened:
    """Make an image of n channels; unsigned 8-bit samples stay as they are."""
    height, width, count = samples.shape
    bits = 8 if samples.dtype == np.uint8 else 8 * stored.itemsize
    depth = f"{bits}-bit {count}-channel" + " float" * (stored.kind == "f")
    kept: Many
    kept = np.ascontiguousarray(samples) if samples.dtype == np.uint8 else finite(samples)
    return Opened(kept, width, height, depth=depth, full=full)


def full_range(kind: np.dtype[Any]) -> tuple[float, float]:
    """Values of a type that stand for black and white where no range was learned."""
    if kind.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(kind)
    return float(limits.min), float(limits.max)


def _over_black(samples: NDArray[Any]) -> NDArray[Any]:
    """Lay samples with an opacity over black: RGB (height, width, 3) or grey (height, width)."""
    if samples.shape[2] in (2, 4):
        most = np.iinfo(samples.dtype).max if samples.dtype.kind in "iu" else 1
        samples = samples[..., :-1] * (samples[..., -1:].astype(np.float64) / most)
    return samples[..., 0] if samples.shape[2] == 1 else samples


def finite(samples: NDArray[Any]) -> Deep:
    """Samples as float32; uint16 samples stay as they are.

    Raises
    ------
    InputError
        When a sample is NaN or infinite, because no grey level could replace it.
    """
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
        return np.ascontiguousarray(samples, np.uint16)
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(samples, np.float32)
    # The lowest and the highest value are enough, and need no mask as large as the image.
    if not (np.isfinite(floats.min()) and np.isfinite(floats.max())):
        raise InputError("has NaN or infinite pixels")
    return floats


def check_size(width: int, height: int) -> None:
    """Refuse images that are too small to score, or too large to be decoded.

    Raises
    ------
    InputError
        When a side is less than 2 pixels, or there are more pixels than twice
        `Image.MAX_IMAGE_PIXELS` of Pillow (178 million in all).
    """
    if min(width, height) < 2:
        raise InputError(f"is {width}x{height} pixels: too small to score")
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise InputError("has too many pixels to be decoded safely")


def check_pages(number: int) -> None:
    """Refuse files that claim more than `MOST_PAGES` pages, each of which would take memory."""
    if number > MOST_PAGES:
        raise InputError(f"claims {number} slices or frames: at most {MOST_PAGES} are read")


def digest_of(picture: Image.Image | Many) -> bytes:
    """SHA-256 of the samples of one page; deep samples are taken as float32."""
    samples = np.asarray(picture)
    if samples.dtype == np.uint16:
        samples = samples.astype(np.float32)
    found = hashlib.sha256(f"{samples.dtype} {samples.shape}".encode())
    found.update(np.ascontiguousarray(samples).data)
    return found.digest()


@contextmanager
def open_file(file: Path) -> Iterator[tuple[IO[bytes], bytes]]:
    """Open a regular file at its start; the context is the stream and the file's SHA-256.

    The file is never in memory as a whole, since memory is short for large images.

    Raises
    ------
    InputError
        When the file is missing, empty, not regular, or larger than `LARGEST_FILE`.
    """
    with reasons():
        size = regular(file).st_size
        if size > LARGEST_FILE:
            raise InputError("file is larger than 2 GiB")
        if not size:
            raise InputError("empty file")
        source = file.open("rb")
    with source:
        with reasons():
            digest = hashlib.file_digest(source, "sha256").digest()
            source.seek(0)
        yield source, digest


def regular(file: Path) -> os.stat_result:
    """Return the status of a file.

    Raises
    ------
    InputError
        When it is not a regular file; reading a named pipe could wait for ever.
    """
    with reasons():
        status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a regular file")
    return status


def os_reason(error: OSError | ValueError) -> str:
    """Say in a few words why the system refuses a file."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return "file does not exist"
    return os.strerror(number).lower() if number else "impossible file name"


@contextmanager
def reasons() -> Iterator[None]:
    """Turn errors of the system about a file into `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(os_reason(error)) from None


@contextmanager
def memory() -> Iterator[None]:
    """Turn a lack of memory into `InputError`."""
    try:
        yield
    except MemoryError:
        raise InputError(NO_ROOM) from None


@contextmanager
def damage() -> Iterator[None]:
    """Turn every error of a library into `InputError`.

    tifffile, pydicom and nibabel do not document what they raise on damaged files, and fuzzing
    finds ever more kinds.
    """
    try:
        silence()
        with memory():
            yield
    except InputError:
        raise
    except Exception:
        raise InputError(DAMAGED) from None


def silence() -> None:
    """Keep libraries from warning about unusual metadata, which users cannot change."""
    # catch_warnings is not thread-safe. A filter that is set on import is lost in code that uses
    # catch_warnings itself, as pytest does. So filters are set again whenever they are missing.
    with _filters_lock:
        for category in (UserWarning, Image.DecompressionBombWarning):
            if ("ignore", None, category, _LIBRARIES, 0) not in warnings.filters:
                warnings.filterwarnings("ignore", category=category, module=_LIBRARIES.pattern)
