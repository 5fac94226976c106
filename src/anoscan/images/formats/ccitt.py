"""Decode CCITT fax strips (ITU-T T.4 and T.6) strictly.

Other decoders go on after a code word that does not exist, and the rest of the strip becomes
another picture. Here it is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anoscan.core.errors import InputError
from anoscan.images.formats.picture import DAMAGED

_RLE, _FAX3 = 2, 3  # values of the compression tag; 4 is T.6
_PEEK = 13  # bits of the longest code word
_MASK: int = 2**_PEEK - 1
_EOL = 11  # zeros before the one that ends a line
_PASS, _HORIZONTAL = 100, 101
_MODES = {
    "0001": _PASS, "001": _HORIZONTAL, "1": 0, "011": 1, "000011": 2, "0000011": 3,
    "010": -1, "000010": -2, "0000010": -3,
}  # fmt: skip
# Code words of runs: 0 to 63, and then 64 to 1728 in steps of 64.
_WHITE = """
00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 110101
101010 101011 0100111 0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 0100100
0011000 00000010 00000011 00011010 00011011 00010010 00010011 00010100 00010101 00010110 00010111
00101000 00101001 00101010 00101011 00101100 00101101 00000100 00000101 00001010 00001011 01010010
01010011 01010100 01010101 00100100 00100101 01011000 01011001 01011010 01011011 01001010 01001011
00110010 00110011 00110100 11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000
01100111 011001100 011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000
011011001 011011010 011011011 010011000 010011001 010011010 011000 010011011
"""
_BLACK = """
0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 00000111
000011000 0000010111 0000011000 0000001000 00001100111 00001101000 00001101100 00000110111
00000101000 00000010111 00000011000 000011001010 000011001011 000011001100 000011001101
000001101000 000001101001 000001101010 000001101011 000011010010 000011010011 000011010100
000011010101 000011010110 000011010111 000001101100 000001101101 000011011010 000011011011
000001010100 000001010101 000001010110 000001010111 000001100100 000001100101 000001010010
000001010011 000000100100 000000110111 000000111000 000000100111 000000101000 000001011000
000001011001 000000101011 000000101100 000001011010 000001100110 000001100111 0000001111
000011001000 000011001001 000001011011 000000110011 000000110100 000000110101 0000001101100
0000001101101 0000001001010 0000001001011 0000001001100 0000001001101 0000001110010 0000001110011
0000001110100 0000001110101 0000001110110 0000001110111 0000001010010 0000001010011 0000001010100
0000001010101 0000001011010 0000001011011 0000001100100 0000001100101
"""
# Code words of either colour: 1792 to 2560 in steps of 64.
_LONG = """
00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101
000000010110 000000010111 000000011100 000000011101 000000011110 000000011111
"""


def decoded(
    data: bytes, rows: int, columns: int, compression: int, options: int
) -> NDArray[np.uint8]:
    """Decode a strip to (rows, columns) of 0 (white) and 1 (black).

    `compression` and `options` are the values of the tags Compression (2, 3 or 4) and T4Options.

    Raises
    ------
    InputError
        When a code word does not exist, or the strip ends early.
    """
    found = np.zeros((rows, columns), np.uint8)
    bits = _Bits(data)
    above: list[int] = []
    for row in range(rows):
        if compression == _RLE:
            bits.at += -bits.at % 8
            line = _one_way(bits, columns)
        elif compression == _FAX3:
            flat = not bits.ended_line() or not options & 1 or bits.take(1)
            line = _one_way(bits, columns) if flat else _two_ways(bits, columns, above)
        else:
            line = _two_ways(bits, columns, above)
        for start, end in zip(line[::2], [*line[1::2], columns], strict=False):
            found[row, start:end] = 1
        above = line
    return found


class _Bits:
    """Bits of a strip, and the place of the next one."""

    def __init__(self, data: bytes) -> None:
        self.data, self.end = data + bytes(4), 8 * len(data)
        self.at = 0

    def peek(self) -> int:
        byte: int = self.at >> 3
        word = int.from_bytes(self.data[byte : byte + 4])
        return word >> (32 - _PEEK - (self.at & 7)) & _MASK

    def take(self, length: int) -> int:
        value = self.peek() >> (_PEEK - length)
        self.move(length)
        return value

    def move(self, length: int) -> None:
        self.at += length
        if self.at > self.end:
            raise InputError("truncated image")

    def word(self, table: Sequence[tuple[int, int]]) -> int:
        """Return the value of the next code word."""
        value, length = table[self.peek()]
        if not length:
            raise InputError(DAMAGED)
        self.move(length)
        return value

    def ended_line(self) -> bool:
        """Skip the end of a line and the zeros before it, and say whether there was one."""
        found = False
        while self.peek() >> (_PEEK - _EOL) == 0:
            while not self.take(1):
                pass
            found = True
        return found


def _one_way(bits: _Bits, columns: int) -> list[int]:
    """Decode a line of runs; return the places where the colour changes, the first to black."""
    line: list[int] = []
    place, black = 0, 0
    while place < columns:
        place += _run(bits, black)
        line.append(place)
        black ^= 1
    if place > columns:
        raise InputError(DAMAGED)
    return line


def _run(bits: _Bits, black: int) -> int:
    table, length = _runs()[black], 0
    while (part := bits.word(table)) >= 64:
        length += part
    return length + part


def _two_ways(bits: _Bits, columns: int, above: list[int]) -> list[int]:
    """Decode a line that is described by what differs from the line above; see `_one_way`."""
    marks = [*above, columns, columns, columns, columns]
    line: list[int] = []
    place, black, index = -1, 0, 0
    while place < columns:
        # The next change of the line above, to the colour that is not the present one.
        while index and marks[index - 1] > place:
            index -= 1
        while (marks[index] <= place and marks[index] < columns) or (
            index % 2 != black and index < len(marks) - 2
        ):
            index += 1
        mode = bits.word(_modes())
        if mode == _PASS:
            place = marks[index + 1]
            continue
        if mode == _HORIZONTAL:
            first = max(place, 0) + _run(bits, black)
            last = first + _run(bits, black ^ 1)
            line += [first, last]
        else:
            first = last = marks[index] + mode
            line.append(first)
            black ^= 1
        if first < max(place, 0) or last > columns:
            raise InputError(DAMAGED)
        place = last
    return line


@functools.cache
def _runs() -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
    """Tables of white and of black runs by the next 13 bits, as (run, bits of the code word)."""
    lengths = [*range(64), *range(64, 1792, 64), *range(1792, 2561, 64)]
    white, black = (
        _table(dict(zip((words + _LONG).split(), lengths, strict=True)))
        for words in (_WHITE, _BLACK)
    )
    return white, black


@functools.cache
def _modes() -> Sequence[tuple[int, int]]:
    return _table(_MODES)


def _table(words: dict[str, int]) -> Sequence[tuple[int, int]]:
    table = [(0, 0)] * 2**_PEEK
    for word, value in words.items():
        spare = _PEEK - len(word)
        start = int(word, 2) << spare
        table[start : start + 2**spare] = [(value, len(word))] * 2**spare
    return table
