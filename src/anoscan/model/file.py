"""One model, one safetensors file: weights, and everything known about them as JSON.

The JSON stands in the safetensors header under one key, so that reading it needs neither torch
nor the weights, and so that equal models are equal files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from anoscan.core.errors import ModelError
from anoscan.core.files import replacing

if TYPE_CHECKING:
    import torch


FORMAT = 1
METADATA_KEY = "anoscan"
LARGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself

_DAMAGED_HINT = "Copy it again from where it came from, or train it again."


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Write a model so that the file is there whole, or not at all.

    Equal arguments give equal bytes, whatever the order of the tensors.

    Parameters
    ----------
    path : Path
        File to write or replace; missing folders are made.
    tensors : dict of str to Tensor
        Any shapes, strides and devices; copied to dense CPU tensors.
    metadata : dict
        JSON values. ``format`` is added, or replaced where it is there already.

    Returns
    -------
    str
        sha256 of the file, in hexadecimal.

    Raises
    ------
    ModelError
        When the file cannot be written.
    ValueError
        When the metadata hold NaN or infinity; TypeError when they are not JSON values.
    """
    from safetensors import torch as safetensors_torch

    text = json.dumps(
        {**metadata, "format": FORMAT},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        ensure_ascii=True,
    )
    # Cloned even when dense already: safetensors refuses tensors that share memory.
    dense = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    data = safetensors_torch.save(dense, {METADATA_KEY: text})
    with replacing_model(path) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a model: its tensors, on the CPU, and its metadata.

    Raises
    ------
    ModelError
        As `read_metadata` does, and when the weights are damaged.
    """
    with opened(path) as stream:
        metadata = _metadata(path, stream)
        stream.seek(0)
        # Read rather than mapped: a mapped file cannot be replaced on Windows, and takes the
        # process down where it is cut short meanwhile.
        data = stream.read()

    from safetensors import SafetensorError
    from safetensors import torch as safetensors_torch

    try:
        # The other errors are those of entries that are well formed but that torch cannot hold.
        return safetensors_torch.load(data), metadata
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}", hint=_DAMAGED_HINT) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what a model file says about itself, without torch and without the weights.

    Returns
    -------
    dict
        The metadata as saved, with ``format``. Only ``format`` has been checked: everything else
        is as trustworthy as the file.

    Raises
    ------
    ModelError
        When the file is missing, cannot be read, is damaged or cut short, is no anoscan model, or
        was written by a newer anoscan.
    """
    with opened(path) as stream:
        return _metadata(path, stream)


def digest(path: Path) -> str:
    """Sha256 of a model file in hexadecimal, read in pieces.

    Raises
    ------
    ModelError
        When the file is missing or cannot be read.
    """
    with opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replacing_model(path: Path) -> AbstractContextManager[BinaryIO]:
    """Stream whose content becomes the model file `path`; see `core.files.replacing`.

    Raises
    ------
    ModelError
        When the system refuses the write.
    """
    return replacing(path, ModelError, durable=True)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Stream of a model file's bytes, whatever they are.

    Raises
    ------
    ModelError
        When the file is missing, is no regular file, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(
                f"{path} is a folder, not a model file.",
                hint="Name one .safetensors file, or a model that anoscan models list shows.",
            )
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise ModelError(f"{path} is not a regular file.", hint="Copy the model to a file.")
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no model file {path}.", hint="anoscan models list shows the models."
        ) from error
    except OSError as error:
        raise ModelError(
            f"cannot read the model file {path}: {error.strerror or error}.",
            hint="Check the file's permissions.",
        ) from error


def _metadata(path: Path, stream: BinaryIO) -> dict[str, Any]:
    header, data_bytes = _header(path, stream)
    comments = header.pop("__metadata__", None)
    text = comments.get(METADATA_KEY) if isinstance(comments, dict) else None
    if not isinstance(text, str):
        raise _foreign(path)
    metadata = _json_object(text)
    if metadata is None:
        raise ModelError(
            f"{path} is damaged: its metadata are not a JSON object.", hint=_DAMAGED_HINT
        )
    _check_format(path, metadata.get("format"))
    needed = _bytes_of_tensors(header)
    if needed is None or needed > data_bytes:
        problem = "its list of tensors cannot be read" if needed is None else "it was cut short"
        raise ModelError(f"{path} is damaged: {problem}.", hint=_DAMAGED_HINT)
    return metadata


def _header(path: Path, stream: BinaryIO) -> tuple[dict[str, Any], int]:
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > min(size - 8, LARGEST_HEADER):
        raise _foreign(path)
    header = _json_object(stream.read(length))
    if header is None:
        raise _foreign(path)
    return header, size - 8 - length


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # a ValueError covers bad UTF-8 and bad JSON
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _check_format(path: Path, version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelError(f"{path} is damaged: its format is no number.", hint=_DAMAGED_HINT)
    if version > FORMAT:
        raise ModelError(
            f"{path} was written by a newer anoscan (format {version}); this one reads {FORMAT}.",
            hint="Upgrade: pip install --upgrade anoscan",
        )


def _bytes_of_tensors(header: dict[str, Any]) -> int | None:
    """End of the last tensor, in bytes after the header; None where an entry is malformed."""
    end = 0
    for entry in header.values():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or type(offsets[1]) is not int:
            return None
        end = max(end, offsets[1])
    return end


def _foreign(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not an anoscan model.",
        hint="Models are the .safetensors files that anoscan train writes.",
    )
