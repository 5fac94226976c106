"""Read and write model files: safetensors files with the weights, and metadata as JSON.

The JSON stands under one key of the header. So it can be read without torch and the weights, and
equal models are equal files.
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
LARGEST_HEADER = 100_000_000  # bytes, which is the limit of safetensors itself

_DAMAGED_HINT = "Copy it again from where it came from, or train it again."


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Write a model file, completely or not at all, and return its SHA-256 in hexadecimal.

    Equal arguments give equal bytes, whatever the order of the tensors.

    Parameters
    ----------
    path : Path
        The file to write or replace; missing folders are created.
    tensors : dict of str to Tensor
        Tensors of any shape, stride and device; they are copied to dense CPU tensors.
    metadata : dict
        JSON values; the key ``format`` is added or replaced.

    Raises
    ------
    ModelError
        When the file cannot be written.
    ValueError, TypeError
        When the metadata contain NaN or infinity, or are not JSON values.
    """
    from safetensors import torch as safetensors_torch

    text = json.dumps(
        {**metadata, "format": FORMAT},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        ensure_ascii=True,
    )
    # Dense tensors are cloned too, because safetensors refuses tensors that share memory.
    dense = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    data = safetensors_torch.save(dense, {METADATA_KEY: text})
    with replacing_model(path) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a model file, and return its tensors, on the CPU, and its metadata.

    Raises
    ------
    ModelError
        In the cases of `read_metadata`, and when the weights are damaged.
    """
    with opened(path) as stream:
        metadata = _metadata(path, stream)
        stream.seek(0)
        # The file is read and not mapped. A mapped file cannot be replaced on Windows. If it is cut
        # short meanwhile, the process crashes.
        data = stream.read()

    from safetensors import SafetensorError
    from safetensors import torch as safetensors_torch

    try:
        # Beside SafetensorError, torch raises these for well-formed entries of unknown kinds.
        return safetensors_torch.load(data), metadata
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}", hint=_DAMAGED_HINT) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a model file's metadata, without torch and the weights; only ``format`` is checked.

    Raises
    ------
    ModelError
        When the file is missing, cannot be read, is damaged or cut short, is not an anoscan model,
        or was written by a newer anoscan.
    """
    with opened(path) as stream:
        return _metadata(path, stream)


def digest(path: Path) -> str:
    """Return the SHA-256 of a model file in hexadecimal; the file is read in pieces.

    Raises
    ------
    ModelError
        When the file is missing or cannot be read.
    """
    with opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replacing_model(path: Path) -> AbstractContextManager[BinaryIO]:
    """Open a stream whose content becomes the model file `path`; see `core.files.replacing`.

    Raises
    ------
    ModelError
        When the system refuses the write.
    """
    return replacing(path, ModelError, durable=True)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading its bytes, whether or not they are a model.

    Raises
    ------
    ModelError
        When the file is missing, is not a regular file, or cannot be read.
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
    except (ValueError, RecursionError):  # ValueError covers bad UTF-8 and bad JSON
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
    """Return the end of the last tensor, in bytes after the header, or None for a bad entry."""
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
