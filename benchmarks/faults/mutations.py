"""Damage files: bytes, and the parts of which each format is made."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from benchmarks.faults.samples import Sample, chunk, every

Rng = np.random.Generator
Change = Callable[[bytes, Rng], bytes]

# Numbers at which arithmetic of lengths, counts and offsets goes wrong.
_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 4095, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
# What a change raises where a file is damaged already.
_NO_SUCH_PART = (
    struct.error, ValueError, IndexError, zlib.error, OSError, EOFError, zipfile.BadZipFile,
    NotImplementedError, RuntimeError,
)  # fmt: skip
_HEAD = 160  # bytes at the start of a file, which half of the changes go to


def mutated(seed: int, number: int) -> tuple[Sample, str]:
    """Return case `number` of a seed: a damaged sample, and words that say what was done."""
    rng = np.random.default_rng([seed, number])
    samples = every()
    sample = samples[number % len(samples)]
    data, done = sample.data, []
    for _ in range(int(rng.integers(1, 4))):
        known = _OF_FORMAT.get(sample.suffix)
        change = known if known and rng.random() < 0.6 else _BYTES[int(rng.integers(len(_BYTES)))]
        with suppress(*_NO_SUCH_PART):
            data = change(data, rng)
            done.append(change.__name__.strip("_").replace("_", " "))
    if not done:
        data, done = flipped_bits(data, rng), ["flipped bits"]
    if sample.suffix == ".png" and rng.random() < 0.8:
        data = _with_crcs(data)
    return Sample(sample.name, sample.suffix, data), f"{sample.name}: {', '.join(done)}"


# --- bytes --------------------------------------------------------------------------------------


def _at(data: bytes, rng: Rng) -> int:
    """Return a place in the data, in half of the cases one near its start."""
    return int(rng.integers(min(len(data), _HEAD) if rng.random() < 0.5 else len(data)))


def _span(data: bytes, rng: Rng) -> tuple[int, int]:
    start = _at(data, rng)
    return start, start + int(rng.integers(1, 1 + max(1, min(64, len(data) - start))))


def flipped_bits(data: bytes, rng: Rng) -> bytes:
    """Flip one to eight bits."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        made[_at(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(made)


def cut_short(data: bytes, rng: Rng) -> bytes:
    """Leave out the end."""
    return data[: _at(data, rng)]


def made_longer(data: bytes, rng: Rng) -> bytes:
    """Put a few bytes at the end."""
    return data + rng.bytes(int(rng.integers(1, 64)))


def span_removed(data: bytes, rng: Rng) -> bytes:
    """Remove bytes, so that all others move."""
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def span_repeated(data: bytes, rng: Rng) -> bytes:
    """Repeat bytes, so that all others move."""
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def span_replaced(data: bytes, rng: Rng) -> bytes:
    """Replace bytes by equal ones, or by random ones."""
    start, end = _span(data, rng)
    value = (b"\0", b"\xff", b"\x80")[int(rng.integers(3))] * (end - start)
    made = value if rng.random() < 0.6 else rng.bytes(end - start)
    return data[:start] + made + data[end:]


def number_replaced(data: bytes, rng: Rng) -> bytes:
    """Replace two, four or eight bytes by a number at which arithmetic goes wrong."""
    size = int(rng.choice([2, 4, 4, 8]))
    start = _at(data, rng) // 2 * 2
    return data[:start] + _number(rng, size, len(data)) + data[start + size :]


def joined_with_another(data: bytes, rng: Rng) -> bytes:
    """Put the end of another file behind the start of this one."""
    samples = every()
    other = samples[int(rng.integers(len(samples)))].data
    return data[: _at(data, rng)] + other[_at(other, rng) :]


def _number(rng: Rng, size: int, near: int = 0) -> bytes:
    some = [*_NUMBERS, near, near + 1, 2**62, 2**63]
    value: int = some[int(rng.integers(len(some)))] % 256**size
    return value.to_bytes(size, "little" if rng.random() < 0.5 else "big")


_BYTES: tuple[Change, ...] = (
    flipped_bits, flipped_bits, cut_short, made_longer, span_removed, span_repeated, span_replaced,
    number_replaced, number_replaced, joined_with_another,
)  # fmt: skip


def any_bytes(data: bytes, rng: Rng) -> bytes:
    """Change bytes wherever they are, if there are any."""
    return data and _BYTES[int(rng.integers(len(_BYTES)))](data, rng)


# --- parts of formats ---------------------------------------------------------------------------


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _with_crcs(data: bytes) -> bytes:
    """Repair the CRCs, without which a reader would look no further."""
    return data[:8] + b"".join(chunk(kind, body) for kind, body in _chunks(data))


def png_chunks(data: bytes, rng: Rng) -> bytes:
    """Change, remove, repeat or move chunks of a PNG, or the samples that it compresses."""
    found = _chunks(data)
    at = int(rng.integers(len(found)))
    kind, body = found[at]
    what = int(rng.integers(6))
    if what == 0:
        del found[at]
    elif what == 1:
        found.insert(int(rng.integers(len(found))), found[at])
    elif what == 2:
        found[at] = (rng.choice([b"tRNS", b"PLTE", b"IDAT", b"eXIf", b"iCCP", b"acTL"]), body)
    elif what == 3:
        head = bytearray(found[0][1])
        place = int(rng.integers(len(head)))
        head[place] = int(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255, int(rng.integers(256))]))
        found[0] = (found[0][0], bytes(head))
    elif what == 4:
        body = zlib.decompress(b"".join(body for kind, body in found if kind == b"IDAT"))
        pixels = (b"IDAT", zlib.compress(any_bytes(body, rng)))
        rest = [part for part in found if part[0] != b"IDAT"]
        found = [*rest[:-1], pixels, rest[-1]]
    else:
        found[at] = (kind, any_bytes(body, rng))
    return data[:8] + b"".join(chunk(bytes(kind), body) for kind, body in found)


def tiff_tags(data: bytes, rng: Rng) -> bytes:
    """Change tag, type, count or value of an entry of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2 if order == "<" else 3] == 43
    start = struct.unpack(order + ("Q" if big else "I"), data[8:16] if big else data[4:8])[0]
    (entries,) = struct.unpack(f"{order}{'Q' if big else 'H'}", data[start : start + (2, 8)[big]])
    size, first = (20, start + 8) if big else (12, start + 2)
    entry = first + size * int(rng.integers(min(entries, 100)))
    what = int(rng.integers(4))
    word = 8 if big else 4
    place, length = ((0, 2), (2, 2), (4, word), (4 + word, word))[what]
    value = int(rng.choice([*_NUMBERS, *range(20), len(data)])) % 256**length
    made: bytes = value.to_bytes(length, "little" if order == "<" else "big")
    if what == 3 and rng.random() < 0.5:  # a short value stands at the start of its field
        made = (value % 2**16).to_bytes(2, "little" if order == "<" else "big") + made[2:]
    return data[: entry + place] + made + data[entry + place + length :]


def jpeg_segments(data: bytes, rng: Rng) -> bytes:
    """Change, remove or repeat a segment of a JPEG."""
    marks = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    start = marks[int(rng.integers(len(marks)))]
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    segment = data[start : start + 2 + length]
    made = (
        lambda: b"",
        lambda: segment * 2,
        lambda: segment[:1] + bytes([int(rng.integers(0xC0, 0xFF))]) + segment[2:],
        lambda: segment[:2] + any_bytes(segment[2:], rng),
    )[int(rng.integers(4))]()
    return data[:start] + made + data[start + len(segment) :]


_VRS = (b"OB", b"OW", b"US", b"SS", b"UL", b"DS", b"IS", b"CS", b"UI", b"SQ", b"UN", b"LO")


def dicom_elements(data: bytes, rng: Rng) -> bytes:
    """Change kind, length or value of an element of a DICOM file."""
    found = [match.start() for match in re.finditer(b"|".join(_VRS), data[132:])]
    start = 132 + found[int(rng.integers(len(found)))]
    place, length = ((start, 2), (start + 2, 2), (start + 4, 4), (start + 4, 2), (start - 4, 4))[
        int(rng.integers(5))
    ]
    made = _number(rng, length, len(data)) if place != start else _VRS[int(rng.integers(12))]
    return data[:place] + made + data[place + length :]


def nifti_fields(data: bytes, rng: Rng) -> bytes:
    """Change a number in the header of a NIfTI file, compressed or not."""
    packed = data.startswith(b"\x1f\x8b")
    whole = gzip.decompress(data) if packed else data
    start = int(rng.integers(0, 352, dtype=int)) // 2 * 2
    size = int(rng.choice([2, 4, 8]))
    whole = whole[:start] + _number(rng, size, len(whole)) + whole[start + size :]
    return gzip.compress(whole, mtime=0) if packed else whole


_SHAPES = ("(0, 0)", "(1,)", "(2**40, 24)", "(4294967296, 4294967296)", "(-1, 24)", "(24, 24, 9)",
           "()", "[24, 24]", "(24, 24.0)", "(True, 24)", "(2, 2)", "(23, 24)")  # fmt: skip
_TYPES = ("'O'", "'|V8'", "'<c16'", "'<U4'", "'<M8[s]'", "[('a', '<f4')]", "'<f16'", "'<i8'", "''")


def npy_header(data: bytes, rng: Rng) -> bytes:
    """Change shape or type in the header of an array file, and repair its length."""
    length = 10 + struct.unpack("<H", data[8:10])[0]
    text = data[10:length].decode("latin-1").rstrip()
    pattern, values = ((r"\([^)]*\)", _SHAPES), (r"'[<>|]\w+'", _TYPES))[int(rng.integers(2))]
    value = values[int(rng.integers(len(values)))]
    head = re.sub(pattern, lambda match: value, text, count=1).encode("latin-1") + b"\n"
    return data[:8] + struct.pack("<H", len(head)) + head + data[length:]


def npz_members(data: bytes, rng: Rng) -> bytes:
    """Change an array within an archive, whose checksums are right afterwards."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as found, zipfile.ZipFile(stream, "w") as made:
        members = found.infolist()
        chosen = members[int(rng.integers(len(members)))]
        for member in members:
            inner = found.read(member)
            if member is chosen:
                inner = (npy_header if rng.random() < 0.5 else any_bytes)(inner, rng)
            made.writestr(member, inner)
    return stream.getvalue()


def first_numbers(data: bytes, rng: Rng) -> bytes:
    """Change a number in the first bytes, where sizes, depths and lengths stand."""
    start, size = int(rng.integers(4, 64)), int(rng.choice([1, 2, 4]))
    return data[:start] + _number(rng, size, len(data)) + data[start + size :]


def pnm_words(data: bytes, rng: Rng) -> bytes:
    """Change a number in the header of a PNM file."""
    words = re.split(rb"(\s+)", data, maxsplit=4)
    at = int(rng.choice([0, 2, 4, 6]))
    some = [b"P1", b"P4", b"P6", b"P7", b"Pf", b"-1", b"0", b"1", b"65536", b"9" * 30, b"#"]
    words[min(at, len(words) - 1)] = some[int(rng.integers(len(some)))]
    return b"".join(words)


_OF_FORMAT: dict[str, Change] = {
    ".png": png_chunks,
    ".tif": tiff_tags,
    ".jpg": jpeg_segments,
    ".dcm": dicom_elements,
    ".nii": nifti_fields,
    ".nii.gz": nifti_fields,
    ".npy": npy_header,
    ".npz": npz_members,
    ".bmp": first_numbers,
    ".gif": first_numbers,
    ".webp": first_numbers,
    ".pbm": pnm_words,
    ".pgm": pnm_words,
    ".ppm": pnm_words,
}
