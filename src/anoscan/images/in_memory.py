"""Images in memory, in place of files: arrays, Pillow images and tensors.

They take the way of files from `ImageFile.read` on. So the same pixels give the same scores.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anoscan.core.channels import MOST_CHANNELS, PLAIN_CHANNELS
from anoscan.core.errors import InputError, UsageError
from anoscan.images.files import ImageFile
from anoscan.images.formats import pillow
from anoscan.images.formats.picture import Opened, are_channels, damage, digest_of, of_samples

if TYPE_CHECKING:
    from torch import Tensor

Samples = NDArray[Any]

_KINDS = "paths of files and folders, arrays, Pillow images or tensors"
_SHAPES = "Images are arrays (n, h, w) or (n, h, w, 3); one image is (h, w) or (h, w, 3)."
_OPACITY = "Leave the opacity out: X[..., :3]. Where these are channels, train with channels=4."
_LEVELS = "uint8, uint16, or floats from 0 (black) to 1 (white)"
_ROUNDING = 1e-6  # by which floats may exceed 0 and 1
_FULL_SIZE = 2**31  # side in pixels below which no image is reduced while it is decoded


@dataclass(frozen=True)
class HeldImage(ImageFile):
    """An image that is in memory.

    Parameters
    ----------
    content : Image or ndarray of shape (h, w), (h, w, 3) or, of many channels, (h, w, c)
        Its pixels: bool, uint8, uint16, or floats of which 0 is black and 1 is white.
    axes : {'hw', 'hwc', 'chw'}
        The axes of the image as it was given.
    """

    content: Image.Image | Samples = field(kw_only=True, compare=False, repr=False)
    axes: str = field(kw_only=True, compare=False, repr=False, default="hw")
    in_memory: ClassVar[bool] = True

    def read(self, *, draft_side: int, deep: bool, channels: int = 3) -> Opened:
        """Return the image as a lossless file with the same pixels would be read."""
        content = self.content
        many = content_is_many(content, channels)
        with damage():
            if isinstance(content, Image.Image):
                opened = pillow.loaded(content, _FULL_SIZE, b"")
            else:
                if content.dtype == np.uint16 and content.ndim == 3 and not (deep or many):
                    content = (content >> 8).astype(np.uint8)  # as files are reduced
                kind = np.dtype(np.float32) if content.dtype.kind == "f" else content.dtype
                opened = of_samples(content, stored=kind, many=many)
            opened = opened.checked(channels)
            return dataclasses.replace(opened, digest=digest_of(opened.picture))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        if isinstance(self.content, Image.Image):
            return self.content.height, self.content.width
        return self.content.shape[0], self.content.shape[1]

    @property
    def samples(self) -> int:
        """Number of values of a pixel: 1 for grey, 3 for colours, or that of many channels."""
        if isinstance(self.content, Image.Image):
            return 1 if self.content.mode in _GREY_MODES else 3
        return 1 if self.content.ndim == 2 else int(self.content.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: that of the array, or in which NumPy shows such a picture."""
        if isinstance(self.content, Image.Image):
            shown: np.dtype[Any] = np.dtype(_GREY_MODES.get(self.content.mode, np.uint8))
            return shown
        return self.content.dtype

    def as_given(self, image: Samples) -> Samples:
        """Return an image (h, w) or (h, w, c) with the axes of this image as it was given."""
        if self.axes == "hw":
            return image
        image = image if image.ndim == 3 else image[..., None]
        return image if self.axes == "hwc" else np.moveaxis(image, 2, 0)


# Modes of Pillow with one value a pixel, and the type in which NumPy shows it.
_GREY_MODES: dict[str, Any] = {
    "1": np.bool_,
    "L": np.uint8,
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I;16L": np.uint16,
    "I;16N": np.uint16,
    "I": np.int32,
    "F": np.float32,
}


@dataclass(frozen=True)
class Held:
    """Images in memory, and the form in which they were given.

    Parameters
    ----------
    images : list of HeldImage
    single : bool
        Whether one image was given, and not several.
    tensor : torch.dtype or None
        The type of the tensors that were given; None for other images.
    shape : tuple of int, optional
        The shape of the one array or tensor that was given.
    """

    images: list[HeldImage]
    single: bool
    tensor: Any = None
    shape: tuple[int, ...] | None = None

    def check_colours(self, channels: int) -> None:
        """Refuse a tensor (3, h, w) for a model of colours: it may be one image or three.

        Raises
        ------
        UsageError
        """
        if self.tensor is None or self.shape is None or channels == 1:
            return
        if len(self.shape) == 3 and self.shape[0] == 3 and not self.single:
            raise UsageError(
                "a tensor (3, h, w) may be one image in colour or three grey ones.",
                hint="Give x[None] for one image, or x[:, None] for three.",
            )

    def like(self, images: Sequence[Samples]) -> Any:
        """Return images (h, w) or (h, w, c), one for each of these, in the form of these.

        They are in one array or tensor where all have the same shape, else in a list.
        """
        found = [held.as_given(image) for held, image in zip(self.images, images, strict=True)]
        whole = found[0] if self.single else together(found)
        if self.tensor is None:
            return whole
        import torch

        def tensor(array: Samples) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.tensor)

        return [tensor(array) for array in whole] if isinstance(whole, list) else tensor(whole)


if TYPE_CHECKING:
    OneImage = str | os.PathLike[str] | NDArray[Any] | Image.Image | Tensor
    Images = OneImage | Iterable[OneImage] | Held


def together(arrays: Sequence[Samples]) -> Samples | list[Samples]:
    """Return arrays as one, with a new first axis; in a list where shapes or types differ."""
    if len({(array.shape, array.dtype) for array in arrays}) == 1:
        return np.stack(arrays)
    return list(arrays)


def gather(
    images: Images, names: Sequence[str] | None = None, channels: int | None = None
) -> Held | list[str | Path]:
    """Return images that are in memory, or the paths that were given in their place.

    Parameters
    ----------
    images : path, array, Image or tensor, or an iterable of such
        Arrays are (h, w), (h, w, 3), (n, h, w) or (n, h, w, 3), or have c channels in place of the
        3 colours. Colours of tensors may come before the rows. Images of a list may differ in size.
    names : sequence of str, optional
        The names of the images in results; by default ``array[0]`` and so on.
    channels : int, optional
        Channels of the images of the model, where that is known. An array (h, w, c) of many
        channels is one image only then, and without it, no image has 4.

    Raises
    ------
    UsageError
        When something is neither a path nor an image, or names are not those of images in memory.
    InputError
        When there is no image, or shapes, types or values are not those of images.
    """
    if isinstance(images, Held):
        return images
    listed = _listed(images)
    if isinstance(listed, list):
        paths = [isinstance(item, str | os.PathLike) for item in listed]
        if not listed:
            raise InputError("no images given.", hint=f"Images are {_KINDS}.")
        if all(paths):
            if names is not None:
                raise UsageError("names are for images in memory: files have their paths.")
            return list(listed)
        if any(paths):
            raise UsageError(
                "paths and images in memory cannot be mixed.", hint="Give them in two calls."
            )
    found, single, tensor = _taken(listed, _Axes(channels))
    if names is not None and len(names) != len(found):
        raise UsageError(f"{len(names)} names are given for {len(found)} images.")
    held = []
    for number, (content, axes) in enumerate(found):
        name = f"array[{number}]" if names is None else str(names[number])
        if not isinstance(content, Image.Image):
            _check_values(content, name)
        held.append(HeldImage(name, Path(name), name, content=content, axes=axes))
    return Held(held, single, tensor, None if isinstance(listed, list) else np.shape(listed))


def unchecked(images: Samples) -> Held:
    """Return images (n, h, w) or (n, h, w, c) as they are; floats may lie beyond 0 and 1."""
    names = [f"array[{number}]" for number in range(len(images))]
    held = [HeldImage(n, Path(n), n, content=x) for n, x in zip(names, images, strict=True)]
    return Held(held, single=False)


def _listed(images: Images) -> Any:
    """Return one path or several images as a list, and one array or picture as it is."""
    if isinstance(images, str | os.PathLike):
        return [images]
    if isinstance(images, Image.Image) or _is_tensor(images):
        return images
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.dtype.kind in "OUT" and all(isinstance(x, str | os.PathLike) for x in array.flat):
            return list(array.flat)
        return array
    if isinstance(images, bytes | bytearray | dict) or not isinstance(images, Iterable):
        raise _no_image(images)
    return list(images)


def _taken(images: Any, axes: _Axes) -> tuple[list[tuple[Any, str]], bool, Any]:
    """Return contents with their axes, whether it is a single image, and the type of tensors."""
    if isinstance(images, Image.Image):
        return [(images, "hw")], True, None
    if not isinstance(images, list):
        array, tensor = _array(images)
        found, single = axes.of_array(array, is_tensor=tensor is not None)
        return found, single, tensor
    several: list[tuple[Any, str]] = []
    kinds: list[Any] = []
    for number, item in enumerate(images):
        if isinstance(item, Image.Image):
            several.append((item, "hw"))
            kinds.append(None)
            continue
        if not (_is_tensor(item) or isinstance(item, np.ndarray) or hasattr(item, "__array__")):
            raise _no_image(item)
        array, tensor = _array(item)
        several.append(axes.of_image(array, f"array[{number}]", is_tensor=tensor is not None))
        kinds.append(tensor)
    return several, False, kinds[0] if len(set(kinds)) == 1 else None


def _no_image(item: Any) -> UsageError:
    hint = "An array of numbers comes from numpy.asarray." if isinstance(item, list) else None
    return UsageError(f"images are {_KINDS}. Got {type(item).__name__}.", hint=hint)


def _is_tensor(item: Any) -> bool:
    # This module does not import torch, because processes that decode files start with it.
    return hasattr(item, "detach") and hasattr(item, "cpu") and hasattr(item, "dtype")


def _array(item: Any) -> tuple[Samples, Any]:
    """Return an array, and the type of the tensor that it was."""
    if not _is_tensor(item):
        return np.asarray(item), None
    plain = item.detach().cpu()
    return (plain.float() if str(item.dtype) == "torch.bfloat16" else plain).numpy(), item.dtype


# --- axes and values ----------------------------------------------------------------------------


def content_is_many(content: Image.Image | Samples, channels: int) -> bool:
    """Whether an image in memory has many channels, for a reader that asks for `channels`."""
    if isinstance(content, Image.Image) or content.ndim == 2:
        return False
    return are_channels(content.shape[2], channels)


@dataclass(frozen=True)
class _Axes:
    """Finds the axes of arrays, for a model whose images have so many channels; None is any."""

    channels: int | None

    def of_array(
        self, array: Samples, *, is_tensor: bool
    ) -> tuple[list[tuple[Samples, str]], bool]:
        """Split an array into images, and say whether it is a single one."""
        shape = array.shape
        if 0 in shape:
            raise InputError(f"an array of shape {shape} holds no pixels.", hint=_SHAPES)
        many = () if self.channels is None or self.channels in PLAIN_CHANNELS else (self.channels,)
        last = array.ndim == 3 and shape[2] in (1, 3, 4, *many)
        if array.ndim == 2 or last or (array.ndim == 3 and is_tensor and shape[0] in many):
            return [self.of_image(array, "array", is_tensor=is_tensor)], True
        if array.ndim == 3:
            return [(image, "hw") for image in array], False
        if array.ndim != 4:
            raise InputError(f"an array of shape {shape} is no image.", hint=_SHAPES)
        return [self.of_image(image, "array", is_tensor=is_tensor) for image in array], False

    def of_image(self, image: Samples, name: str, *, is_tensor: bool) -> tuple[Samples, str]:
        """Return one image as (h, w), (h, w, 3) or (h, w, c), and its axes."""
        shape = image.shape
        if 0 in shape:
            raise InputError(f"{name} of shape {shape} holds no pixels.", hint=_SHAPES)
        if image.ndim == 2:
            return image, "hw"
        if image.ndim != 3:
            raise InputError(f"{name} of shape {shape} is no image.", hint=_SHAPES)
        first = shape[0] in PLAIN_CHANNELS or (
            self._are_many(shape[0])
            and not (shape[2] in PLAIN_CHANNELS or self._are_many(shape[2]))
        )
        axes = "hwc"
        if is_tensor and first:
            image, axes = np.moveaxis(image, 0, 2), "chw"
        count = image.shape[2]
        if count == 1:
            return image[..., 0], axes
        if count == 3 or self._are_many(count):
            return image, axes
        if first:
            raise InputError(
                f"an image of shape {shape} has its colours first.",
                hint="Move the colours to the end: numpy.moveaxis(X, -3, -1).",
            )
        plain = self.channels is None or self.channels in PLAIN_CHANNELS
        wanted = "1 or 3" if plain else str(self.channels)
        raise InputError(
            f"an image of shape {shape} has {count} channels, not {wanted}.",
            hint=_OPACITY if count == 4 and plain else _SHAPES,
        )

    def _are_many(self, count: int) -> bool:
        """Whether an image may have so many channels, which are neither grey nor colours."""
        if self.channels is not None:
            return count == self.channels and count not in PLAIN_CHANNELS
        return count not in (*PLAIN_CHANNELS, 4) and 2 <= count <= MOST_CHANNELS


def _check_values(image: Samples, name: str) -> None:
    """Refuse types and values that have no known black and white.

    What is no number is left to `read`: such an image is skipped, as a file would be.
    """
    kind = image.dtype
    if kind == np.bool_ or (kind.kind == "u" and kind.itemsize <= 2):
        return
    if kind.kind != "f":
        hint = "Convert them, for example with X.astype('uint8') where they are 0 to 255."
        if kind.kind not in "iu":
            hint = "Where sizes differ, give a list of arrays of numbers."
        raise InputError(f"{name} holds {kind} values: images are {_LEVELS}.", hint=hint)
    low, high = float(image.min()), float(image.max())
    if np.isfinite([low, high]).all() and not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"{name} has values from {low:g} to {high:g}: images are {_LEVELS}.",
            hint="Divide floats by the value that stands for white, or give uint8 or uint16.",
        )
