"""Damaged model files and checkpoints whose checksum is right: a hostile writer can make those."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Path = tuple[str | int, ...]
GONE = object()


def sealed(data: bytes) -> bytes:
    """A file with the checksum that docs/model-file.md defines, if it has a place for one."""
    found = re.search(rb'"checksum\\":\\"(.{64})', data, re.DOTALL)
    if found is None:
        return data
    before, after = data[: found.start(1)], data[found.end(1) :]
    digits = hashlib.sha256(before + b"0" * 64 + after).hexdigest()
    return before + digits.encode() + after


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and weights of a file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def spoiled(data: bytes, random: random.Random) -> bytes:
    """A file with a few changed bytes, and sometimes without its end."""
    head = 8 + struct.unpack("<Q", data[:8])[0]
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        # Half of the changes are in the header, which is a small part of the file.
        place = random.randrange(random.choice((head, len(data))))
        changed[place] = random.choice((random.randrange(256), *b'0919-"{}[],:.eE'))
    return bytes(changed[: random.choice((len(data),) * 9 + (random.randrange(len(data)),))])


def paths(values: Any, path: Path = ()) -> Iterator[Path]:
    """Where values stand in JSON values, from the outside in; of lists, the first entry alone."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = list(enumerate(values[:1]))
    for key, value in inner:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def replaced(values: Any, path: Path, value: Any) -> Any:
    """A copy of JSON values with another value, or none, at a path."""
    changed = copy.deepcopy(values)
    parent = at(changed, path[:-1])
    if value is GONE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return changed


def tensor_damages(
    tensors: dict[str, Tensor], name: str
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Kinds of damage of one tensor, each with all tensors."""
    whole = tensors[name]
    others = {key: value for key, value in tensors.items() if key != name}
    yield "dropped", others
    yield "renamed", others | {f"{name}x": whole}
    yield "grown", others | {name: whole[None]}
    yield "emptied", others | {name: whole.flatten()[:0]}
    if whole.ndim:
        yield "longer", others | {name: torch.cat([whole, whole[-1:]])}
    other = torch.float32 if whole.dtype != torch.float32 else torch.float64
    yield "of another type", others | {name: whole.to(other)}
    if whole.is_floating_point():
        for value in (float("nan"), float("inf")):
            holed = whole.clone()
            holed.view(-1)[-1] = value
            yield str(value), others | {name: holed}
