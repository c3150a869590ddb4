"""What a tokenizer on a device must know of Unicode, as the binary tables that a packed vocabulary carries.

``edgeslim/runtime/unicode.bin`` has them whole; ``scripts/make_unicode_tables.py`` writes it. Numbers are little-endian
u32 unless it is said otherwise::

    segments   code point | flags << 21 where a run of code points with equal flags begins, the first at 0
    classes    code point << 8 | combining class, of those that accent stripping keeps and canonical order moves
    map        runs     start u32, count u16, step u16, difference i32: start + i * step becomes that + difference
               pairs    code point, what it becomes; from 2**31 on: the place in the pool << 8 | how many from there
               pool     code points
               short    pairs in u16

In the file a section stands behind its count, a map behind its four; both maps are sorted by code point. A map's keys
are in one of runs, pairs and short pairs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["UnicodeTables", "pack_classes", "pack_map", "pack_segments", "read_unicode_tables", "write_unicode_tables"]

DROPPED, SPACE, CHINESE, PUNCTUATION, MARK, NONSTARTER, LETTER, NUMBER, REGEX_SPACE, NUMERIC = (
    1 << i for i in range(10)
)
"""Flags of code points: control characters that cleaning drops, white space, ideographs that get spaces around them,
BERT's punctuation, non-spacing marks, combining class not 0; ``\\p{L}``, ``\\p{N}`` and ``\\s`` of regular expressions,
and what counts as a digit."""

_CODE_BITS = 21
_POOLED = 1 << 31
_RUN_LEAST = 4
_ALL = (1 << 10) - 1


@dataclass(frozen=True, kw_only=True)
class UnicodeTables:
    """Flags of code points, run by run; combining classes; what code points become, where not themselves."""

    segments: tuple[tuple[int, int], ...]
    """Where a run of code points begins, and their flags."""
    classes: Mapping[int, int]
    decompositions: Mapping[int, tuple[int, ...]]
    """Canonical, whole, without non-spacing marks; Hangul syllables are left to arithmetic."""
    lower_case: Mapping[int, tuple[int, ...]]


def pack_segments(segments: Iterable[tuple[int, int]], mask: int) -> bytes:
    """The segments of those flags that are in ``mask``."""
    out, last = [], -1
    for code, flags in segments:
        if flags & mask != last:
            last = flags & mask
            out.append(code | last << _CODE_BITS)
    return struct.pack(f"<{len(out)}I", *out)


def pack_map(mapping: Mapping[int, tuple[int, ...]]) -> tuple[tuple[int, int, int, int], bytes]:
    """A map's counts (runs, pairs, pool, short pairs) and its bytes."""
    runs: list[bytes] = []
    pairs: list[bytes] = []
    pool: list[int] = []
    short: list[bytes] = []
    left = sorted(mapping)
    while left:
        start, count, step = _longest_run(mapping, left)
        if count >= _RUN_LEAST:
            runs.append(struct.pack("<IHHi", start, count, step, mapping[start][0] - start))
            taken = set(range(start, start + count * step, step))
            left = [code for code in left if code not in taken]
            continue
        left = left[1:]
        becomes = mapping[start]
        if len(becomes) == 1 and max(start, becomes[0]) < 0x10000:
            short.append(struct.pack("<HH", start, becomes[0]))
        else:
            value = becomes[0] if len(becomes) == 1 else _POOLED | len(pool) << 8 | len(becomes)
            pairs.append(struct.pack("<II", start, value))
            pool += becomes if len(becomes) > 1 else ()
    counts = (len(runs), len(pairs), len(pool), len(short))
    return counts, b"".join(runs) + b"".join(pairs) + struct.pack(f"<{len(pool)}I", *pool) + b"".join(short)


def _longest_run(mapping: Mapping[int, tuple[int, ...]], left: list[int]) -> tuple[int, int, int]:
    """The longest run from the first of ``left`` on, in steps of 1 or 2: start, count, step. No other begins in it."""
    start, codes, best = left[0], set(left), (left[0], 1, 1)
    if len(mapping[start]) != 1:
        return best
    difference = mapping[start][0] - start
    for step in (1, 2):
        count = 1
        while (code := start + count * step) in codes and mapping[code] == (code + difference,) and count < 0xFFFF:
            if step == 2 and code - 1 in codes:
                break
            count += 1
        if count > best[1]:
            best = (start, count, step)
    return best


def write_unicode_tables(tables: UnicodeTables) -> bytes:
    """All of it as one file."""
    segments = pack_segments(tables.segments, _ALL)
    classes = pack_classes(tables.classes)
    out = struct.pack("<I", len(segments) // 4) + segments + struct.pack("<I", len(classes) // 4) + classes
    for mapping in (tables.decompositions, tables.lower_case):
        counts, data = pack_map(mapping)
        out += struct.pack("<4I", *counts) + data
    return out


def pack_classes(classes: Mapping[int, int]) -> bytes:
    """Code points and their combining classes, sorted."""
    return b"".join(struct.pack("<I", code << 8 | value) for code, value in sorted(classes.items()))


def read_unicode_tables(content: bytes) -> UnicodeTables:
    """The inverse of ``write_unicode_tables``. The file is edgeslim's own, so nothing is checked."""
    numbers = _Numbers(content)
    segments = [numbers.take("<I") for _ in range(numbers.take("<I"))]
    entries = [numbers.take("<I") for _ in range(numbers.take("<I"))]
    return UnicodeTables(
        segments=tuple((segment & (1 << _CODE_BITS) - 1, segment >> _CODE_BITS) for segment in segments),
        classes={entry >> 8: entry & 255 for entry in entries},
        decompositions=dict(sorted(_read_map(numbers))),
        lower_case=dict(sorted(_read_map(numbers))),
    )


class _Numbers:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, kind: str) -> int:
        (value,) = struct.unpack_from(kind, self._content, self._at)
        self._at += struct.calcsize(kind)
        return int(value)


def _read_map(numbers: _Numbers) -> Iterator[tuple[int, tuple[int, ...]]]:
    runs, pairs, pooled, short = (numbers.take("<I") for _ in range(4))
    for _ in range(runs):
        start, count, step, difference = (numbers.take(kind) for kind in ("<I", "<H", "<H", "<i"))
        for code in range(start, start + count * step, step):
            yield code, (code + difference,)
    entries = [(numbers.take("<I"), numbers.take("<I")) for _ in range(pairs)]
    pool = tuple(numbers.take("<I") for _ in range(pooled))
    for code, value in entries:
        first = value >> 8 & (1 << 23) - 1
        yield code, pool[first : first + (value & 255)] if value & _POOLED else (value,)
    for _ in range(short):
        yield numbers.take("<H"), (numbers.take("<H"),)
