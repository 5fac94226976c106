"""Read NIfTI volumes with nibabel: slices along the last axis are pages."""

from __future__ import annotations

import functools
import gzip
import io
import shutil
import tempfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import (
    LARGEST_FILE,
    Opened,
    check_pages,
    check_size,
    damage,
    full_range,
    of_samples,
    reasons,
    regular,
)

SUFFIXES = ".nii .nii.gz"
_HEADER = 540  # bytes of the longer form, NIfTI-2
_STEP = 2**20
_MOST_DEFLATED = 1032  # bytes that one byte of deflate can become, at most
_lock = threading.Lock()


def begins(head: bytes, name: str) -> bool:
    """Whether these are the first bytes of a NIfTI file; for a gzip file, its name decides."""
    if head[:2] == b"\x1f\x8b":
        return name.endswith(".nii.gz")
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def count(file: Path) -> int:
    """Number of slices in a file."""
    return _volume_of(file).slices


def read(file: Path, page: int | None, draft_side: int, *, deep: bool) -> Opened:
    """Read one slice: the first axis runs to the right, and the second axis down."""
    volume = _volume_of(file)
    check_size(volume.width, volume.height)
    with damage():
        values = volume.slice(file, (page or 1) - 1)
        if values.dtype.fields:  # RGB is stored as three fields of 8 bits
            values = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, -1)
            return of_samples(values)
        full = None
        if volume.kind.kind in "iu":
            ends = [end * volume.slope + volume.intercept for end in full_range(volume.kind)]
            full = (min(ends), max(ends)) if volume.slope else None
        return of_samples(values, stored=volume.kind, full=full)


@dataclass(frozen=True)
class _Volume:
    """Facts of a header; lengths are in voxels, `offset` in unpacked bytes, `changed` in ns."""

    width: int
    height: int
    slices: int
    kind: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    packed: bool
    changed: int

    @property
    def end(self) -> int:
        """Unpacked bytes up to the end of the voxels."""
        return self.offset + self.slices * self.width * self.height * self.kind.itemsize

    def slice(self, file: Path, index: int) -> NDArray[Any]:
        """Read the values of a slice (height, width), in their unit."""
        from nibabel.arrayproxy import ArrayProxy

        source: Any = file
        if self.packed:
            with _lock:  # otherwise each thread would unpack the file
                data = _unpacked(file, self.end, self.changed)
            if isinstance(data, str):
                raise InputError(data)
            size = self.width * self.height * self.kind.itemsize
            start = self.offset + index * size
            source = io.BytesIO(data[start : start + size].tobytes())
        shape = (self.width, self.height, 1 if self.packed else self.slices)
        offset = 0 if self.packed else self.offset
        spec = (shape, self.kind, offset, self.slope, self.intercept)
        voxels = ArrayProxy(source, spec, mmap=False)[..., 0 if self.packed else index]
        return np.asarray(voxels).T


def _volume_of(file: Path) -> _Volume:
    status = regular(file)
    return _volume(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _volume(file: Path, size: int, changed: int) -> _Volume:
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError:
        raise InputError("is NIfTI, which needs: pip install 'anoscan[nifti]'") from None
    with reasons(), file.open("rb") as source:
        packed = source.read(2) == b"\x1f\x8b"
    with damage():
        with gzip.open(file) if packed else file.open("rb") as source:
            data = source.read(_HEADER)
        form = Nifti2Header if data[4:8] == b"n+2\0" else Nifti1Header
        header = form(data[: form.template_dtype.itemsize], check=False)
        shape = tuple(int(side) for side in header.get_data_shape())
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3) or min(shape) < 1:
            sides = "x".join(map(str, shape))
            sides = sides if len(sides) < 40 else f"{len(shape)} axes"
            raise InputError(f"is a volume of {sides}: save one of two or three axes")
        slope, intercept = header.get_slope_inter()
        width, height, slices = (*shape, 1)[:3]
        check_pages(slices)
        volume = _Volume(
            width,
            height,
            slices,
            kind=header.get_data_dtype(),
            offset=int(header.get_data_offset()),
            slope=1.0 if slope is None else float(slope),
            intercept=0.0 if intercept is None else float(intercept),
            packed=packed,
            changed=changed,
        )
        if volume.end > (size * _MOST_DEFLATED if packed else size):
            raise InputError("truncated image")
        return volume


@functools.lru_cache(maxsize=2)
def _unpacked(file: Path, whole: int, changed: int) -> NDArray[np.uint8] | str:
    """Unpack the first `whole` bytes of a gzip file into a temporary file, and map that.

    To read a slice from the packed file, everything before it would be unpacked again. `changed`
    keeps the cache apart for versions of the file. A reason why it cannot be unpacked is kept too.
    """
    if whole > LARGEST_FILE:
        return "unpacks to more than 2 GiB"
    if shutil.disk_usage(tempfile.gettempdir()).free < whole:
        return f"needs {whole / 1e9:.1f} GB in the temporary folder, which has less"
    with tempfile.TemporaryFile() as target:
        try:
            with gzip.open(file) as source:
                for start in range(0, whole, _STEP):
                    target.write(source.read(min(_STEP, whole - start)))
        except (EOFError, zlib.error):
            return "truncated image"
        if target.tell() < whole:
            return "truncated image"
        target.flush()
        return np.memmap(target, np.uint8, mode="r", shape=(whole,))
