"""The reference decoder's code tables and bits: FORMAT.md, section 7, and the streams of section 5."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from edgeslim.codec import format as esz
from edgeslim.codec.format import SegmentInfo, malformed

__all__ = ["BROKEN", "Place", "Reader", "Table", "read_set"]

BROKEN = "its hashes are right, so a program that breaks the format wrote it"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the container we are, for errors."""

    source: str
    offset: int
    segment: int
    block: int | None = None

    def error(self, got: str, expected: str) -> Exception:
        """The error for what was found here."""
        block = "" if self.block is None else f", block {self.block}"
        return malformed(self.source, f"byte {self.offset}, segment {self.segment}{block}", got, expected, BROKEN)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A code: ``entries[next max_bits bits of the stream]`` is (symbol, code length)."""

    max_bits: int
    entries: tuple[tuple[int, int], ...]
    values: int = 0
    """JOINT: how many values there are but the fill value."""


class Reader:
    """The bits of one stream, from bit 0 up."""

    def __init__(self, stream: bytes, place: Place) -> None:
        self.stream = stream
        self.place = place
        self.at = 0  # next byte
        self.bits = 0
        self.held = 0

    def symbol(self, table: Table) -> int:
        """The next code's symbol."""
        if self.held < table.max_bits:
            more = self.stream[self.at : self.at + 32]
            self.bits |= int.from_bytes(more, "little") << self.held
            self.held += 8 * len(more)
            self.at += len(more)
        symbol, length = table.entries[self.bits & ((1 << table.max_bits) - 1)]
        if length > self.held:
            raise self.place.error("a stream that ends within a code", "all items")
        self.bits >>= length
        self.held -= length
        return symbol

    def check_end(self) -> None:
        """Checks that the sentinel is what is left."""
        rest = self.stream[self.at :]
        left = self.held + 8 * len(rest)
        if not 1 <= left <= 8 or self.bits | int.from_bytes(rest, "little") << self.held != 1:
            raise self.place.error(f"{left} bits behind the last item", "a sentinel bit, then zeros to the byte's end")


def read_set(
    segment: SegmentInfo, data: bytes, at: int, book_count: int, place: Place
) -> tuple[tuple[Table, ...], int]:
    """Section 7: the alphabet's tables and where they end."""
    values = book_count or 256
    if segment.alphabet == "JOINT":
        return _read_joint(segment, data, at, 16 if segment.nibble else values, place)
    symbols = {"PLAIN": values, "PLANES": 256, "PAIR": 16, "GAP": segment.cap + 1, "MASK8": 256}[segment.alphabet]
    limit = esz.MAX_PAIR_BITS if segment.alphabet == "PAIR" else esz.MAX_CODE_BITS
    lengths, at = _read_lengths(data, at, symbols, 1, limit, place)
    tables = [_make_table(lengths)]
    if segment.alphabet in ("GAP", "MASK8"):
        lengths, at = _read_lengths(data, at, 16 if segment.nibble else values, 1, esz.MAX_CODE_BITS, place)
        if segment.fill in lengths:
            raise place.error(f"a value code for the fill value {segment.fill}", "none")
        tables.append(_make_table(lengths))
    return tuple(tables), at


def _read_joint(segment: SegmentInfo, data: bytes, at: int, values: int, place: Place) -> tuple[tuple[Table, ...], int]:
    """JOINT's largest value, then its table: a row of symbols for each gap, then the runs."""
    top = data[at] if at < len(data) else 0
    symbols = segment.cap * top + esz.JOINT_RUNS
    if not max(1, segment.fill) <= top < values or symbols > 256:
        raise place.error(f"a largest value of {top}", f"one from the fill value {segment.fill} to {values - 1}")
    lengths, at = _read_lengths(data, at + 1, symbols, top, esz.MAX_CODE_BITS, place)
    return (dataclasses.replace(_make_table(lengths), values=top),), at


def _read_lengths(data: bytes, at: int, symbols: int, row: int, limit: int, place: Place) -> tuple[dict[int, int], int]:
    """The code length of each used symbol, checked, and where the table ends; ``row`` symbols are a row of form 3."""
    head = data[at : at + 3] + bytes(3)
    if head[0] == 0:
        listed, start = list(range(symbols)), at + 1
    elif head[0] in (1, 3):
        listed, start = list(range(head[1], head[2] + 1)), at + 3
    elif head[0] == 2:
        start = at + 3 + head[1]
        listed = list(data[at + 2 : start])
    else:
        raise place.error(f"table form {head[0]}", "0, 1, 2 or 3")
    if at >= len(data) or start > len(data):
        raise place.error(f"a table up to byte {start}", f"at most {len(data)}")
    rising = all(a < b for a, b in itertools.pairwise(listed))
    if not listed or not rising or listed[-1] >= symbols:
        raise place.error(f"symbols {listed}", f"in rising order, below {symbols}")
    if head[0] == 3:
        found, bits = _read_differences(data[start:], len(listed), row, place)
    else:
        found = [nibble for byte in data[start : start + (len(listed) + 1) // 2] for nibble in (byte & 15, byte >> 4)]
        bits = 4 * len(listed)
    end = start + -(-bits // 8)
    if end > len(data):
        raise place.error(f"a table up to byte {end}", f"at most {len(data)}")
    if bits % 8 and data[end - 1] >> bits % 8:
        raise place.error("a table's last bits that are not zero", "zero")
    lengths = {symbol: length for symbol, length in zip(listed, found, strict=False) if length}
    if any(length > limit for length in lengths.values()):
        raise place.error(f"a code of {max(lengths.values())} bits", f"at most {limit}")
    if len(lengths) == 1:
        complete = set(lengths.values()) == {1}
    else:
        complete = sum(1 << (limit - length) for length in lengths.values()) == 1 << limit
    if not complete:
        raise place.error(f"code lengths {lengths}", "a complete code, or a lone symbol of length 1")
    return lengths, end


def _read_differences(data: bytes, count: int, row: int, place: Place) -> tuple[list[int], int]:
    """Form 3: ``count`` lengths, each as its difference from the one a row before; and the bits that they take."""
    stream = iter([byte >> k & 1 for byte in data for k in range(8)])
    lengths: list[int] = []
    bits = 0
    try:
        for i in range(count):
            before = lengths[i - row] if i >= row else lengths[-1] if lengths else 0
            ones = 0
            while ones < 3 and next(stream):
                ones += 1
            explicit = sum(next(stream) << k for k in range(4)) if ones == 3 else 0
            lengths.append((before, before + 1, before - 1, explicit)[ones])
            bits += 7 if ones == 3 else ones + 1
    except StopIteration:
        raise place.error(f"a table that ends after {len(lengths)} lengths", str(count)) from None
    if min(lengths) < 0:
        raise place.error("a code of less than 0 bits", "0 to 11")
    return lengths, bits


def _make_table(lengths: dict[int, int]) -> Table:
    if len(lengths) == 1:
        return Table(max_bits=0, entries=((next(iter(lengths)), 0),))
    max_bits = max(lengths.values())
    entries = [(0, 0)] * (1 << max_bits)
    code, before = 0, 0
    for symbol, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code <<= length - before
        before = length
        reversed_code = int(f"{code:0{length}b}"[::-1], 2)
        for high in range(1 << (max_bits - length)):
            entries[reversed_code | high << length] = (symbol, length)
        code += 1
    return Table(max_bits=max_bits, entries=tuple(entries))
