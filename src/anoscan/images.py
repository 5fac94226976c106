"""Finds image files, decodes them and brings them to the form the networks see.

No other module opens a training or query image. File names and file contents are untrusted: a
file that cannot be used becomes an `InputError` with a short reason, or a `Skipped` in a stream.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import random
import re
import shutil
import stat
import statistics
import struct
import tempfile
import threading
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

from anoscan.config import LARGEST_SIZE, SMALLEST_SIZE
from anoscan.errors import InputError
from anoscan.results import Skipped

_SUFFIXES = ".png .jpg .jpeg .tif .tiff .bmp .webp .gif .ppm .pgm .pnm .pbm"
EXTENSIONS = frozenset(_SUFFIXES.split())
# Pillow decides by content, and some of its other formats run programs (EPS starts Ghostscript).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
_KINDS = "PNG, JPEG, TIFF, BMP, WebP, GIF or PNM"

_LARGEST_FILE = 2 * 1024**3  # bytes; Pillow's own limit on pixels makes larger files useless
_LARGEST_AUTO_SIZE = 64
_INSPECTED = 512
_INSPECTED_PIXELS = 16_384  # of one deep image
_IN_MEMORY = 1024**3  # bytes of training pixels; more go to a temporary file

_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, by their source and by fuzzing them.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)

_CUT = re.compile("truncated|not enough image data|EOF")

_FROM_PILLOW = re.compile(r"PIL\.")
_filters_lock = threading.Lock()

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImageFile:
    """An image file, not opened yet.

    `path` is what the user gave joined with the path inside that folder and names the image in
    all results; `file` is where it is; `inside` is the path relative to the folder given (the
    file name for a file given by itself). `path` and `inside` are '/'-separated.
    """

    path: str
    file: Path
    inside: str


@dataclass(frozen=True, kw_only=True)
class ImageRule:
    """How a file becomes the tensor that the networks see.

    8-bit samples map 0..255 to [-1, 1]. Deeper samples map `window` to [-1, 1], and what lies
    outside it linearly on to [-3, 3]: an anomaly brighter than any normal image must stay
    visible. Without a window (a model that learned from 8-bit images only) it is 0..65535 for
    integers and 0..1 for floats.
    """

    size: int
    channels: int
    window: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Rule as JSON values; `from_dict` takes them back."""
        window = None if self.window is None else list(self.window)
        return {"size": self.size, "channels": self.channels, "window": window}

    @classmethod
    def from_dict(cls, values: Any) -> ImageRule:
        """Rule from JSON values that nobody has checked yet.

        Raises
        ------
        ValueError
            For anything that `to_dict` does not write.
        """
        if not isinstance(values, dict) or set(values) != {"size", "channels", "window"}:
            raise ValueError("an image rule has exactly size, channels and window")
        size, channels, window = values["size"], values["channels"], values["window"]
        if type(size) is not int or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
            raise ValueError(f"size must be from {SMALLEST_SIZE} to {LARGEST_SIZE}")
        if type(channels) is not int or channels not in (1, 3):
            raise ValueError("channels must be 1 or 3")
        return cls(size=size, channels=channels, window=_checked_window(window))


def _checked_window(window: Any) -> tuple[float, float] | None:
    if window is None:
        return None
    if not isinstance(window, list | tuple) or len(window) != 2:
        raise ValueError("window must be null or two numbers")
    if not all(type(end) in (int, float) for end in window):
        raise ValueError("window must be null or two numbers")
    try:
        low, high = float(window[0]), float(window[1])
    except OverflowError:
        raise ValueError("window must be finite") from None
    if not (math.isfinite(low) and math.isfinite(high - low) and low < high):
        raise ValueError("window must be finite and rising")
    return low, high


@dataclass(frozen=True)
class Decoded:
    """An image as the networks see it.

    `pixels` is (channels, size, size) float32, upright, in [-1, 1] ([-3, 3] for deep samples).
    `width` and `height` are those of the image as stored, before its EXIF `orientation` (1 to
    8) is applied. `digest` is the SHA-256 of the file's bytes.
    """

    image: ImageFile
    pixels: Floats
    width: int
    height: int
    orientation: int
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a folder of images looks like, and the rule that follows.

    `sizes` counts "WIDTHxHEIGHT" of the upright images, `bit_depths` kinds such as "8-bit grey",
    both among the `inspected` images that could be read.
    """

    rule: ImageRule
    sizes: dict[str, int]
    bit_depths: dict[str, int]
    inspected: int


# --- finding ------------------------------------------------------------------------------------


def find(paths: Sequence[str | Path]) -> list[ImageFile]:
    """Image files named by `paths`: files as they are, folders recursively and sorted.

    Inside folders, hidden entries, ``__MACOSX`` and files with other extensions are passed over.
    A file reached twice by the same path is returned once. Links to folders are followed, but no
    folder is read twice.

    Raises
    ------
    InputError
        For a path that does not exist, a folder that cannot be listed or holds no image, or
        when `paths` is empty.
    """
    if not paths:
        raise InputError("no images given.", hint="Name image files or folders.")
    found: dict[str, ImageFile] = {}
    for path in paths:
        name = str(path).replace(os.sep, "/")
        root = Path(path)
        if not name or not _exists(root):
            raise InputError(f"{name or 'an empty path'} does not exist.")
        absolute = os.path.normpath(root.absolute())
        if not root.is_dir():
            found.setdefault(absolute, ImageFile(name, root, root.name))
            continue
        inside = _inside(root)
        if not inside:
            raise InputError(
                f"no images in {name}.", hint=f"Images are {_KINDS} files; folders may nest."
            )
        prefix = name if name.endswith("/") else name + "/"
        for below in inside:
            found.setdefault(
                str(Path(absolute, below)),
                ImageFile(prefix + below, root / below, below),
            )
    return list(found.values())


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be opened: {_os_reason(error)}.") from None
    return True


def _inside(root: Path) -> list[str]:
    # Real folders come before linked ones, so that a folder reached both ways keeps its own name.
    real, linked = deque([(root, "")]), deque[tuple[Path, str]]()
    visited: set[tuple[int, int]] = set()
    images: list[str] = []
    while real or linked:
        folder, prefix = real.popleft() if real else linked.popleft()
        try:
            identity = folder.stat()
            if (identity.st_dev, identity.st_ino) in visited:
                continue
            visited.add((identity.st_dev, identity.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    link = entry.is_symlink()
                    if Path(entry.path).is_dir() if link else entry.is_dir():
                        queue = linked if link else real
                        queue.append((folder / entry.name, f"{prefix}{entry.name}/"))
                    elif Path(entry.name).suffix.lower() in EXTENSIONS:
                        images.append(prefix + entry.name)
        except OSError as error:
            raise InputError(f"folder {folder} cannot be read: {_os_reason(error)}.") from None
    return sorted(images)


# --- decoding -----------------------------------------------------------------------------------


def decode(image: ImageFile, rule: ImageRule) -> Decoded:
    """Read one image as `rule` says.

    The first frame, upright, stretched to the square with antialiasing (an image that has the
    size already is not resampled), transparency over black. Pillow reduces 16-bit colour PNGs to
    8 bits; 16-bit grey keeps its levels.

    Raises
    ------
    InputError
        Whose message is the bare reason, without the path.
    """
    data = _read(image.file)
    opened = _open(data, draft_side=2 * rule.size)
    try:
        pixels = _as_ruled(opened, rule)
    except MemoryError:
        raise InputError("needs more memory than there is") from None
    except _DAMAGE:
        raise InputError("damaged image") from None
    width, height, orientation = opened.width, opened.height, opened.orientation
    return Decoded(image, pixels, width, height, orientation, hashlib.sha256(data).digest())


def stream(
    files: Iterable[ImageFile], rule: ImageRule, *, workers: int
) -> Iterator[Decoded | Skipped]:
    """Decode `files` in `workers` threads; results come in input order.

    At most ``4 * workers`` files are ahead of the consumer, so `files` may be endless.
    """

    def result(image: ImageFile) -> Decoded | Skipped:
        try:
            return decode(image, rule)
        except InputError as error:
            return Skipped(path=image.path, reason=error.message)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[Decoded | Skipped]] = deque()
    try:
        for image in files:
            ahead.append(pool.submit(result, image))
            # What is done is handed on at once: a slow source must not hold results back.
            while len(ahead) >= 4 * workers or (ahead and ahead[0].done()):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Opened:
    """A decoded Pillow image; `pending` is the orientation that is still to be applied."""

    image: Image.Image
    width: int
    height: int
    orientation: int
    pending: int


def _read(file: Path) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would wait for ever
            raise InputError("not a regular file")
        if status.st_size > _LARGEST_FILE:
            raise InputError("file is larger than 2 GiB")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(_os_reason(error)) from None
    if not data:
        raise InputError("empty file")
    return data


def _open(data: bytes, *, draft_side: int) -> _Opened:
    _silence_pillow()
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if min(width, height) < 2:
            raise InputError(f"is {width}x{height} pixels: too small to score")
        # Pillow turns TIFFs upright itself while loading, and forgets that it did. Asking others
        # before they are loaded could load them, and hide that this failed.
        turned = _orientation(image) if image.format == "TIFF" else 1
        image.draft(None, (draft_side, draft_side))
        image.load()
    except UnidentifiedImageError:
        raise InputError(f"not a {_KINDS} image") from None
    except Image.DecompressionBombError:
        raise InputError("has too many pixels to be decoded safely") from None
    except MemoryError:
        raise InputError("needs more memory than there is") from None
    except _DAMAGE as error:
        cut = isinstance(error, EOFError) or _CUT.search(str(error))
        raise InputError("truncated image" if cut else "damaged image") from None
    pending = _orientation(image)
    if pending == 1 and turned >= 5:
        width, height = image.size[::-1]
    return _Opened(image, width, height, max(turned, pending), pending)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:  # a damaged note about the image is no reason to refuse the image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _as_ruled(opened: _Opened, rule: ImageRule) -> Floats:
    deep = opened.image.mode in _DEEP
    image = _deep_image(opened.image) if deep else _shallow_image(opened.image, rule.channels)
    if image.size != (rule.size, rule.size):
        image = image.resize((rule.size, rule.size), Image.Resampling.BILINEAR)
    if opened.pending != 1:
        image = image.transpose(_UPRIGHT[opened.pending])
    values = np.asarray(image, np.float64)
    if deep:
        low, high = rule.window or ((0.0, 1.0) if opened.image.mode == "F" else (0.0, 65535.0))
        values = np.clip((values - low) / (high - low) * 2 - 1, -3, 3)
    else:
        values = values / 127.5 - 1
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    shape = (rule.channels, rule.size, rule.size)
    return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32)


def _deep_image(image: Image.Image) -> Image.Image:
    with np.errstate(over="ignore"):
        samples = np.asarray(image).astype(np.float32)
    if not np.isfinite(samples).all():
        raise InputError("has NaN or infinite pixels")
    return Image.fromarray(samples)


def _shallow_image(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image.convert("RGBA"))
        image = black
    if image.mode not in ("1", "L"):  # to grey by way of RGB: LAB has no other
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _silence_pillow() -> None:
    # Pillow warns about odd metadata and large images, which users can do nothing about.
    # catch_warnings is not thread-safe, and a filter set on import is lost in code that uses
    # catch_warnings itself (pytest does), so the filters are put back whenever they are missing.
    with _filters_lock:
        for category in (UserWarning, Image.DecompressionBombWarning):
            if ("ignore", None, category, _FROM_PILLOW, 0) not in warnings.filters:
                warnings.filterwarnings("ignore", category=category, module=_FROM_PILLOW.pattern)


def _os_reason(error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return "file does not exist"
    return os.strerror(number).lower() if number else "impossible file name"


# --- learning the rule --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What inspection keeps of one image; `samples` (deep images only) start with their bounds."""

    width: int
    height: int
    bit_depth: str
    colour: bool
    samples: Floats | None


def inspect(
    files: Sequence[ImageFile], *, size: int | None, channels: int | None, workers: int, seed: int
) -> Inspection:
    """Learn from at most 512 of the files, drawn by `seed`, how images become tensors.

    A `size` of None becomes the median of the longer sides, rounded to a multiple of 4, from 16
    to 64; `channels` None becomes 1 where no image has a colour, else 3. Deep images give the
    window: the 0.05 % and 99.95 % quantiles of their samples, or their ends where these lie close.

    Raises
    ------
    InputError
        When none of the files can be read.
    """
    chosen = list(files)
    if len(files) > _INSPECTED:
        drawn = sorted(random.Random(seed).sample(range(len(files)), _INSPECTED))
        chosen = [files[index] for index in drawn]
    with ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
        results = list(pool.map(_look, chosen))
    looks = [look for look in results if isinstance(look, _Look)]
    if not looks:
        first = f" {chosen[0].path}: {results[0]}." if chosen else ""
        raise InputError(
            f"none of the {len(chosen)} images looked at can be read.{first}",
            hint=f"Images are {_KINDS} files of at least 2x2 pixels.",
        )
    if size is None:
        side = statistics.median(max(look.width, look.height) for look in looks)
        size = min(max(4 * math.floor(side / 4 + 0.5), SMALLEST_SIZE), _LARGEST_AUTO_SIZE)
    if channels is None:
        channels = 3 if any(look.colour for look in looks) else 1
    window = _window([look.samples for look in looks if look.samples is not None])
    return Inspection(
        rule=ImageRule(size=size, channels=channels, window=window),
        sizes=dict(Counter(f"{look.width}x{look.height}" for look in looks)),
        bit_depths=dict(Counter(look.bit_depth for look in looks)),
        inspected=len(looks),
    )


def _look(image: ImageFile) -> _Look | str:
    try:
        opened = _open(_read(image.file), draft_side=2 * LARGEST_SIZE)
        width, height = opened.width, opened.height
        if opened.orientation >= 5:
            width, height = height, width
        if opened.image.mode in _DEEP:
            return _Look(width, height, _deep_kind(opened.image), False, _samples(opened.image))
        red, green, blue = _shallow_image(opened.image, 3).split()
        differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
        colour = any(difference.getbbox() for difference in differences)
        return _Look(width, height, "8-bit colour" if colour else "8-bit grey", colour, None)
    except InputError as error:
        return error.message
    except MemoryError:
        return "needs more memory than there is"
    except _DAMAGE:
        return "damaged image"


def _deep_kind(image: Image.Image) -> str:
    if image.mode == "F":
        return "32-bit float"
    # Pillow widens 16-bit PGM (and in older versions PNG) to 32 bits.
    short = image.mode != "I" or image.format in ("PNG", "PPM")
    return "16-bit grey" if short else "32-bit grey"


def _samples(image: Image.Image) -> Floats:
    flat = np.asarray(_deep_image(image), np.float32).ravel()
    step = -(-flat.size // _INSPECTED_PIXELS)
    # A step that shares no factor with the width, or every sample could come from one column.
    while math.gcd(step, image.width) > 1:
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
    # A few hot or dead pixels must not stretch the range; sparse bright spots may be all there is.
    if inner_high > inner_low and high - low >= 1.5 * (inner_high - inner_low):
        low, high = inner_low, inner_high
    if high <= low:
        high = low + max(1.0, abs(low) * 1e-3)
    return low, high


# --- training images ----------------------------------------------------------------------------


class ImageArray:
    """The readable images of a training folder, decoded once.

    Attributes
    ----------
    pixels : ndarray, (n, channels, size, size) float32
        In memory, or mapped from a temporary file that is gone once closed.
    images : list of ImageFile
        One an entry of `pixels`, in the order of the files given.
    digests : list of bytes
        SHA-256 of each file: equal for copies under other names.
    """

    def __init__(self, pixels: Floats, images: list[ImageFile], digests: list[bytes]) -> None:
        self.pixels = pixels
        self.images = images
        self.digests = digests

    @classmethod
    def load(
        cls,
        files: Sequence[ImageFile],
        rule: ImageRule,
        *,
        workers: int,
        on_progress: Callable[[int, int], None] | None = None,
        in_memory: int = _IN_MEMORY,
    ) -> tuple[ImageArray, list[Skipped]]:
        """Decode `files`; those that cannot be read are left out and listed.

        Parameters
        ----------
        on_progress : callable, optional
            Called with the number of files done and of all files, after each file.
        in_memory : int
            Bytes of pixels above which a temporary file holds them.

        Raises
        ------
        InputError
            When the temporary folder has no room for the pixels.
        """
        pixels = _allocate((len(files), rule.channels, rule.size, rule.size), in_memory)
        images: list[ImageFile] = []
        digests: list[bytes] = []
        skipped: list[Skipped] = []
        for done, result in enumerate(stream(files, rule, workers=workers), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                pixels[len(images)] = result.pixels
                images.append(result.image)
                digests.append(result.digest)
            if on_progress is not None:
                on_progress(done, len(files))
        return cls(pixels[: len(images)], images, digests), skipped

    def __len__(self) -> int:
        return len(self.images)

    def close(self) -> None:
        """Let the pixels go, and with them the temporary file, once nobody else holds them."""
        self.pixels = np.empty((0, *self.pixels.shape[1:]), np.float32)

    def __enter__(self) -> ImageArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _allocate(shape: tuple[int, ...], in_memory: int) -> Floats:
    needed = 4 * math.prod(shape)
    if needed <= in_memory:
        return np.empty(shape, np.float32)
    # Writing to a mapped file on a full disk kills the process, so room is made sure of first.
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < needed:
        raise InputError(
            f"the images need {needed / 1e9:.1f} GB in {folder}, which has less left.",
            hint="Set TMPDIR to a folder with more room, or train at a smaller --size.",
        )
    with tempfile.TemporaryFile() as file:  # without a name: gone with the last use of it
        return np.memmap(file, np.float32, mode="w+", shape=shape)


# --- back to the file ---------------------------------------------------------------------------


def stored_box(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    *,
    width: int,
    height: int,
    orientation: int,
) -> tuple[int, int, int, int]:
    """Box in pixels of the image as stored, from corners in the upright image.

    Parameters
    ----------
    x0, y0, x1, y1 : float
        Opposite corners, in units of the upright image's sides (0..1).
    width, height, orientation : int
        As `Decoded` has them: of the stored image.

    Returns
    -------
    x, y, box_width, box_height : int
        The smallest box of whole pixels that holds it, inside the image, at least 1x1.
    """
    (ax, ay), (bx, by) = _stored(x0, y0, orientation), _stored(x1, y1, orientation)
    x, box_width = _span(min(ax, bx) * width, max(ax, bx) * width, width)
    y, box_height = _span(min(ay, by) * height, max(ay, by) * height, height)
    return x, y, box_width, box_height


def _stored(u: float, v: float, orientation: int) -> tuple[float, float]:
    return {
        1: (u, v),
        2: (1 - u, v),
        3: (1 - u, 1 - v),
        4: (u, 1 - v),
        5: (v, u),
        6: (v, 1 - u),
        7: (1 - v, 1 - u),
        8: (1 - v, u),
    }[orientation]


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    # Without the tolerance, the rounding of 1 - u would add a pixel.
    start = min(max(math.floor(low + 1e-6), 0), length - 1)
    end = min(max(math.ceil(high - 1e-6), start + 1), length)
    return start, end - start
