"""Read and write model files: safetensors files with the weights, and metadata as JSON.

The JSON stands under one key of the header. So it can be read without torch and the weights, and
equal models are equal files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from anoscan.core.errors import ModelError
from anoscan.core.files import replacing

if TYPE_CHECKING:
    import torch


FORMAT = 1
METADATA_KEY = "anoscan"
LARGEST_HEADER = 16 * 1024**2  # bytes; reading JSON takes twenty times as many
LARGEST_FILE = 4 * 1024**3  # bytes; a file is read into memory, and its tensors are copies
# The first key of the JSON as the header holds it, before the 64 digits.
_CHECKSUM = b'{\\"checksum\\":\\"'
_NO_DIGITS = b"0" * 64

_DAMAGED_HINT = "Copy it again from where it came from, or train it again."


class Contents(NamedTuple):
    """What one reading of a model file gave.

    `tensors` are on the CPU. `sha256` is that of the whole file, in hexadecimal.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    sha256: str


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
        JSON values; the keys ``format`` and ``checksum`` are added or replaced.

    Raises
    ------
    ModelError
        When the file cannot be written, or would be too large to be read again.
    ValueError, TypeError
        When the metadata contain NaN or infinity, or are not JSON values.
    """
    from safetensors import torch as safetensors_torch

    text = _text({**metadata, "format": FORMAT})
    # Dense tensors are cloned too, because safetensors refuses tensors that share memory.
    dense = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    data = bytearray(safetensors_torch.save(dense, {METADATA_KEY: text}))
    header = 8 + struct.unpack("<Q", data[:8])[0]
    if header > LARGEST_HEADER or len(data) > LARGEST_FILE:
        raise ModelError(
            f"{path} would be too large to be read again: {len(data) / 1e9:.1f} GB, of which the "
            f"header has {header / 1e9:.1f}.",
            hint="Give a lower --width, or fewer images of different sizes.",
        )
    place = _place(data)
    data[place : place + 64] = _checksum(data, place).encode("ascii")
    with replacing_model(path) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> Contents:
    """Read a model file: once, so that tensors, metadata and hash are of the same bytes.

    Raises
    ------
    ModelError
        In the cases of `read_metadata`, and when the file is too large, or any byte of it differs
        from what was written.
    """
    with opened(path) as stream:
        head, metadata, checksum = _head(path, stream)
        size = os.fstat(stream.fileno()).st_size
        if size > LARGEST_FILE:
            raise ModelError(
                f"{path} is too large for a model: {size / 1e9:.1f} GB, and at most "
                f"{LARGEST_FILE / 1e9:.1f} are read.",
                hint=_DAMAGED_HINT,
            )
        # The file is read and not mapped. A mapped file cannot be replaced on Windows. If it is cut
        # short meanwhile, the process crashes.
        stream.seek(0)
        data = stream.read(size)
    if not data.startswith(head) or _checksum(data, _place(data)) != checksum:
        raise ModelError(
            f"{path} is damaged: its content does not fit its checksum.", hint=_DAMAGED_HINT
        )

    from safetensors import SafetensorError
    from safetensors import torch as safetensors_torch

    try:
        # Beside SafetensorError, torch raises these for well-formed entries of unknown kinds.
        tensors = safetensors_torch.load(data)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is damaged: {reason}.", hint=_DAMAGED_HINT) from error
    return Contents(tensors, metadata, hashlib.sha256(data).hexdigest())


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a model file's metadata, without torch and the weights; only ``format`` is checked.

    Raises
    ------
    ModelError
        When the file is missing, cannot be read, is damaged or cut short, is not an anoscan model,
        has no checksum, or was written by a newer anoscan.
    """
    with opened(path) as stream:
        return _head(path, stream)[1]


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


def copy(source: Path, target: Path) -> None:
    """Copy a model file, completely or not at all; the copy has the date of the source.

    Raises
    ------
    ModelError
        When one file cannot be read, or the other not be written.
    """
    with opened(source) as reader, replacing_model(target) as writer:
        shutil.copyfileobj(reader, writer)
        times = os.fstat(reader.fileno())
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def digest(path: Path) -> str:
    """Return the SHA-256 of a model file in hexadecimal; raise ModelError as `opened` does."""
    with opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _text(metadata: dict[str, Any]) -> str:
    """Return the metadata as JSON, with zeros for the checksum that `save` sets."""
    values = {key: value for key, value in metadata.items() if key != "checksum"}
    text = json.dumps(
        values, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )
    return f'{{"checksum":"{_NO_DIGITS.decode()}",' + text[1:]


def _place(data: bytes | bytearray) -> int:
    """Return where the digits of the checksum begin in a model file; without any, a wrong place."""
    return data.find(_CHECKSUM, 0, LARGEST_HEADER) + len(_CHECKSUM)


def _checksum(data: bytes | bytearray, place: int) -> str:
    """Return the SHA-256 of a model file with zeros for the digits of its checksum."""
    found = hashlib.sha256(data[:place] + _NO_DIGITS)
    found.update(memoryview(data)[place + len(_NO_DIGITS) :])
    return found.hexdigest()


def _head(path: Path, stream: BinaryIO) -> tuple[bytes, dict[str, Any], str]:
    """Read the bytes before the weights; return them, the metadata in them, and the checksum."""
    head, header, data_bytes = _header(path, stream)
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
    checksum = metadata.pop("checksum", None)
    if not isinstance(checksum, str):
        raise ModelError(
            f"{path} has no checksum: a development version of anoscan wrote it.",
            hint="Train it again.",
        )
    needed = _bytes_of_tensors(header)
    if needed is None or needed > data_bytes:
        problem = "its list of tensors cannot be read" if needed is None else "it was cut short"
        raise ModelError(f"{path} is damaged: {problem}.", hint=_DAMAGED_HINT)
    return head, metadata, checksum


def _header(path: Path, stream: BinaryIO) -> tuple[bytes, dict[str, Any], int]:
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > min(size - 8, LARGEST_HEADER):
        raise _foreign(path)
    text = stream.read(length)
    header = _json_object(text)
    if header is None:
        raise _foreign(path)
    return prefix + text, header, size - 8 - length


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            decoded, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
    except (ValueError, RecursionError):  # ValueError covers bad UTF-8 and bad JSON
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise ValueError("a whole number has more than 64 bits")
    return value


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
