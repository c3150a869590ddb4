"""The ESZ container's constants, and a parser for its header and index (FORMAT.md, sections 1 to 3).

This is all that the encoder and the decoders share. It knows where bytes lie, not how they are coded. A malformed
header or index raises ``BadInputError``, whose ``where`` names the container, the byte and the segment.

The container's hash is here in plain Python, since the parser must check the header's and the index's hash without a
shared library. It does about 10 MB/s, enough for an index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from edgeslim.errors import BadInputError

__all__ = [
    "ALPHABETS",
    "DTYPES",
    "ContainerInfo",
    "Header",
    "SegmentInfo",
    "align64",
    "dtype_bytes",
    "hash32",
    "malformed",
    "parse_header",
    "parse_index",
]

MAGIC: Final = b"\x89ESZ\r\n\x1a\n"
VERSION: Final = 1
HEADER_BYTES: Final = 64
HEADER: Final = struct.Struct("<8sHHIIIQQQIIII")
ENTRY: Final = struct.Struct("<QQIIIIHBBBBBBBBH")

FEATURE_CODEBOOK: Final = 2
FEATURE_PLANES: Final = 4
FEATURE_ROWS: Final = 8
FEATURES: Final = FEATURE_CODEBOOK | FEATURE_PLANES | FEATURE_ROWS

COMPACT: Final = 1
NIBBLE: Final = 2

MAX_SEGMENTS: Final = 65_536
MAX_INDEX_BYTES: Final = 1 << 26
MAX_IMAGE_BYTES: Final = 1 << 40
MAX_FILE_BYTES: Final = 1 << 41
MAX_SEGMENT_BYTES: Final = (1 << 31) - 1
MAX_COMPACT_BYTES: Final = 65_536
MAX_NAME_BYTES: Final = 1_024
MAX_RANK: Final = 8
MAX_DIM: Final = (1 << 31) - 1
MIN_BLOCK_LOG2: Final = 12
MAX_BLOCK_LOG2: Final = 20
MAX_SETS: Final = 64
ROW_UNIT: Final = 8
ROW_CLASSES: Final = 4
MAX_CODE_BITS: Final = 11
MAX_PAIR_BITS: Final = 6
JOINT_RUNS: Final = 8

RAW, PLAIN, PAIR, GAP, MASK8, PLANES, JOINT = range(7)
ALPHABETS: Final = ("RAW", "PLAIN", "PAIR", "GAP", "MASK8", "PLANES", "JOINT")
"""Names of the alphabets; the position is the id."""

EXTRAS: Final = ("CODEBOOK", "ROWS")
"""Not alphabets, but named among them where they may be used: values of 2, 4 or 8 bytes as indices into a list, and
rows with classes, each with codes of its own."""

DTYPES: Final = (
    "bytes",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "uint4x2",
    "int4x2",
    "float8_e4m3fn",
    "float8_e5m2",
)
"""Names of the dtypes; the position is the id. ``x2``: two values a byte, the earlier one in the low nibble."""

_ITEM_BYTES: Final = {
    "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8, "float16": 2,
    "bfloat16": 2, "float32": 4, "float64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip

_DAMAGED: Final = "the file is damaged or was cut off: copy or build it again"
_MASK: Final = 0xFFFFFFFF
_P1, _P2, _P3, _P4, _P5 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1


@dataclass(frozen=True, kw_only=True)
class Header:
    """The 64-byte header, checked."""

    required_features: int
    optional_features: int
    segment_count: int
    index_bytes: int
    decoded_bytes: int
    file_bytes: int
    image_hash: int
    index_hash: int


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """One index entry. Offsets count from the start of the image (decoded) and of the file (coded)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    alphabet: str
    decoded_offset: int
    decoded_bytes: int
    coded_offset: int
    coded_bytes: int
    directory_bytes: int
    hash: int
    block_bytes: int
    compact: bool
    nibble: bool
    cap: int
    """GAP: the longest gap that has a symbol. JOINT: how many gaps have symbols. Else 0."""
    fill: int
    value_bytes: int = 1
    """With a codebook and for PLANES: the size of the values, 2, 4 or 8. Else 1."""
    row_items: int = 0
    """Items of a row, if rows have classes; else 0."""

    @property
    def has_codebook(self) -> bool:
        """Whether blocks code indices of values."""
        return self.value_bytes > 1 and self.alphabet != "PLANES"

    @property
    def features(self) -> int:
        """The feature bits that a container with this segment needs."""
        planes = FEATURE_PLANES if self.alphabet == "PLANES" else 0
        return planes | (FEATURE_CODEBOOK if self.has_codebook else 0) | (FEATURE_ROWS if self.row_items else 0)

    @property
    def block_count(self) -> int:
        """Number of blocks; 0 if the segment is empty."""
        return -(-self.decoded_bytes // self.block_bytes) if self.decoded_bytes else 0

    @property
    def data_offset(self) -> int:
        """Where the blocks start, from the start of the payload."""
        end = self.coded_offset + self.directory_bytes
        raw = self.alphabet == "RAW" and not self.compact
        return (align64(end) if raw else end) - self.coded_offset


@dataclass(frozen=True, kw_only=True)
class ContainerInfo:
    """What header and index tell about a container."""

    segments: tuple[SegmentInfo, ...]
    decoded_bytes: int
    file_bytes: int
    index_bytes: int
    image_hash: int


def align64(offset: int) -> int:
    """The smallest multiple of 64 that is not below ``offset``."""
    return -(-offset // 64) * 64


def dtype_bytes(dtype: str) -> int:
    """Bytes a value of ``dtype``; 0 if the size says nothing about the shape (``bytes`` and packed nibbles)."""
    return _ITEM_BYTES.get(dtype, 0)


def malformed(source: str, place: str, got: str, expected: str, hint: str = _DAMAGED) -> BadInputError:
    """The error for a container that breaks a rule: ``source`` is its path, ``place`` a byte, segment or block."""
    return BadInputError(f"{source}: {place}", got, expected=expected, hint=hint)


def _rotate(x: int, by: int) -> int:
    return (x << by | x >> 32 - by) & _MASK


def _lane(words: Iterable[int], lane: int) -> int:
    """XXH32's round over every fourth word."""
    for word in words:
        lane = lane + word * _P2 & _MASK
        lane = (lane << 13 | lane >> 19) * _P1 & _MASK
    return lane


def xxh32(data: bytes) -> int:
    """XXH32 with seed 0 (Yann Collet, 2012)."""
    whole = len(data) // 16 * 16
    h = _P5
    if whole:
        words = struct.unpack(f"<{whole // 4}I", data[:whole])
        seeds = (_P1 + _P2 & _MASK, _P2, 0, -_P1 & _MASK)
        lanes = [_lane(words[k::4], seed) for k, seed in enumerate(seeds)]
        h = sum(_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True))
    h = h + len(data) & _MASK
    for at in range(whole, len(data) - 3, 4):
        h = _rotate(h + int.from_bytes(data[at : at + 4], "little") * _P3 & _MASK, 17) * _P4 & _MASK
    for byte in data[len(data) // 4 * 4 :]:
        h = _rotate(h + byte * _P5 & _MASK, 11) * _P1 & _MASK
    h = (h ^ h >> 15) * _P2 & _MASK
    h = (h ^ h >> 13) * _P3 & _MASK
    return h ^ h >> 16


def hash32(data: bytes | bytearray | memoryview) -> int:
    """The container's 32-bit hash of ``data`` (FORMAT.md, section 1)."""
    data = bytes(data)
    strands = [b"".join(data[at : at + 16] for at in range(start, len(data), 64)) for start in (0, 16, 32, 48)]
    return xxh32(struct.pack("<4I", *map(xxh32, strands)))


def parse_header(data: bytes | bytearray | memoryview, source: str = "container") -> Header:
    """Checks and reads the first 64 bytes of a container."""
    if len(data) < HEADER_BYTES:
        raise malformed(source, "byte 0", f"{len(data)} bytes", f"at least {HEADER_BYTES}")
    fields = HEADER.unpack_from(data)
    magic, version, header_bytes, required, optional, count = fields[:6]
    index_bytes, decoded_bytes, file_bytes, image_hash, zero, index_hash, header_hash = fields[6:]
    if magic != MAGIC:
        raise malformed(source, "byte 0", f"magic {magic.hex()}", MAGIC.hex(), "this is not an ESZ container")
    if version != VERSION:
        raise malformed(source, "byte 8", f"version {version}", str(VERSION), "a newer edgeslim may read it")
    found = hash32(data[:60])
    if found != header_hash:
        raise malformed(source, "byte 60", f"header hash {header_hash:#010x}", f"{found:#010x}")
    if required & ~FEATURES:
        got = f"required features {required:#x}"
        raise malformed(source, "byte 12", got, f"bits of {FEATURES:#x}", "a newer edgeslim may read it")
    for place, name, got, limit in (
        (20, "segments", count, MAX_SEGMENTS),
        (24, "index bytes", index_bytes, MAX_INDEX_BYTES),
        (32, "decoded bytes", decoded_bytes, MAX_IMAGE_BYTES),
        (40, "file bytes", file_bytes, MAX_FILE_BYTES),
    ):
        if got > limit:
            raise malformed(source, f"byte {place}", f"{got} {name}", f"at most {limit}")
    if header_bytes != HEADER_BYTES:
        raise malformed(source, "byte 10", f"a header of {header_bytes} bytes", str(HEADER_BYTES))
    if zero:
        raise malformed(source, "byte 52", f"reserved field {zero:#x}", "0")
    if file_bytes < HEADER_BYTES + index_bytes:
        raise malformed(source, "byte 40", f"{file_bytes} file bytes", f"room for {index_bytes} index bytes")
    return Header(
        required_features=required,
        optional_features=optional,
        segment_count=count,
        index_bytes=index_bytes,
        decoded_bytes=decoded_bytes,
        file_bytes=file_bytes,
        image_hash=image_hash,
        index_hash=index_hash,
    )


def parse_index(header: Header, index: bytes | bytearray | memoryview, source: str = "container") -> ContainerInfo:
    """Checks and reads the whole index, the ``header.index_bytes`` bytes behind the header."""
    if len(index) != header.index_bytes:
        raise malformed(source, "byte 64", f"{len(index)} bytes of index", str(header.index_bytes))
    found = hash32(index)
    if found != header.index_hash:
        raise malformed(source, "byte 56", f"index hash {header.index_hash:#010x}", f"{found:#010x}")
    segments = []
    at, decoded, end = 0, 0, HEADER_BYTES + header.index_bytes
    for number in range(header.segment_count):
        segment, at = _parse_entry(index, at, number, decoded, end, source)
        if segment.features & ~header.required_features:
            needs, has = f"features {segment.features:#x}", f"those of the header, {header.required_features:#x}"
            raise malformed(source, f"index entry {number}", needs, has)
        decoded += segment.decoded_bytes
        end = segment.coded_offset + segment.coded_bytes
        segments.append(segment)
    for got, name, expected in (
        (at, "index bytes used", header.index_bytes),
        (decoded, "decoded bytes in all segments", header.decoded_bytes),
        (end, "as the last payload's end", header.file_bytes),
    ):
        if got != expected:
            raise malformed(source, "index", f"{got} {name}", str(expected))
    return ContainerInfo(
        segments=tuple(segments),
        decoded_bytes=header.decoded_bytes,
        file_bytes=header.file_bytes,
        index_bytes=header.index_bytes,
        image_hash=header.image_hash,
    )


def _parse_entry(
    index: bytes | bytearray | memoryview, at: int, number: int, decoded: int, end: int, source: str
) -> tuple[SegmentInfo, int]:
    """The entry at ``at`` and where the next one starts; ``decoded`` and ``end`` sum up the segments before."""
    place = f"byte {HEADER_BYTES + at}: index entry {number}"
    if len(index) - at < ENTRY.size:
        raise malformed(source, place, f"{len(index) - at} bytes left", f"at least {ENTRY.size}")
    fields = ENTRY.unpack_from(index, at)
    decoded_offset, coded_offset, decoded_bytes, coded_bytes, directory_bytes, hash_, name_bytes = fields[:7]
    alphabet, dtype, rank, block_log2, flags, cap_log2, fill, book_log2, row_units = fields[7:]

    def check(ok: bool, got: str, expected: str) -> None:  # noqa: FBT001
        if not ok:
            raise malformed(source, place, got, expected)

    compact, nibble = bool(flags & COMPACT), bool(flags & NIBBLE)
    check(name_bytes <= MAX_NAME_BYTES, f"a name of {name_bytes} bytes", f"at most {MAX_NAME_BYTES}")
    check(rank <= MAX_RANK, f"rank {rank}", f"at most {MAX_RANK}")
    size = ENTRY.size + 4 * rank + name_bytes
    check(len(index) - at >= size, f"{len(index) - at} bytes left", str(size))
    shape = struct.unpack_from(f"<{rank}I", index, at + ENTRY.size)
    name = bytes(index[at + size - name_bytes : at + size])
    check(all(dim <= MAX_DIM for dim in shape), f"shape {shape}", f"at most {MAX_DIM} each")
    check(all(byte >= 0x20 for byte in name), f"name {name!r}", "no control characters")
    check(decoded_offset == decoded, f"decoded offset {decoded_offset}", str(decoded))
    start = end if compact else align64(end)
    check(coded_offset == start, f"coded offset {coded_offset}", str(start))
    check(alphabet < len(ALPHABETS), f"alphabet {alphabet}", f"0 to {len(ALPHABETS) - 1}")
    check(decoded_bytes <= MAX_SEGMENT_BYTES, f"{decoded_bytes} decoded bytes", f"at most {MAX_SEGMENT_BYTES}")
    check(flags & ~(COMPACT | NIBBLE) == 0, f"flags {flags:#x}", "only bits 0 and 1")
    sparse = alphabet in (GAP, MASK8, JOINT)
    check(not nibble or sparse, "NIBBLE", "GAP, MASK8 or JOINT with it")
    fill_limit = (15 if nibble else 255) if sparse else int(alphabet == PLANES)
    check(fill <= fill_limit, f"fill value {fill}", "one that fits the alphabet")
    caps = {GAP: (5, 6, 7, 8), JOINT: (1, 2, 3, 4)}.get(alphabet, (0,))
    check(cap_log2 in caps, f"cap_log2 {cap_log2}", "one of the alphabet's")
    check(book_log2 > 0 or alphabet != PLANES, "PLANES without a value size", "2, 4 or 8 bytes")
    check(
        row_units == 0 or (not compact and alphabet in (PLAIN, GAP, MASK8, JOINT)),
        f"rows of {8 * row_units}",
        "no rows here",
    )
    if book_log2:
        fits = book_log2 <= 3 and alphabet in (PLAIN, GAP, MASK8, PLANES, JOINT) and not nibble
        check(fits, f"codebook {book_log2}", "none, or bytes")
        check(decoded_bytes % (1 << book_log2) == 0, f"{decoded_bytes} decoded bytes", "a multiple of the value size")
    blocks = 1
    if compact:
        check(decoded_bytes <= MAX_COMPACT_BYTES, f"COMPACT with {decoded_bytes} bytes", f"up to {MAX_COMPACT_BYTES}")
        check(directory_bytes == 0 and block_log2 == 0, "COMPACT with blocks", "no directory, block_log2 0")
        check(decoded_bytes > 0 or alphabet == RAW, "an empty coded segment", "RAW")
    else:
        check(decoded_bytes > 0, "an empty segment", "COMPACT")
        check(MIN_BLOCK_LOG2 <= block_log2 <= MAX_BLOCK_LOG2, f"block_log2 {block_log2}", "12 to 20")
        blocks = (decoded_bytes - 1 >> block_log2) + 1
        check(8 * blocks <= directory_bytes <= coded_bytes, f"a directory of {directory_bytes} bytes", "one that fits")
    segment = SegmentInfo(
        name=name.decode("utf-8", "backslashreplace"),
        dtype=DTYPES[dtype] if dtype < len(DTYPES) else f"dtype-{dtype}",
        shape=shape,
        alphabet=ALPHABETS[alphabet],
        decoded_offset=decoded_offset,
        decoded_bytes=decoded_bytes,
        coded_offset=coded_offset,
        coded_bytes=coded_bytes,
        directory_bytes=directory_bytes,
        hash=hash_,
        block_bytes=decoded_bytes if compact else 1 << block_log2,
        compact=compact,
        nibble=nibble,
        cap=(1 << cap_log2) - (alphabet == GAP) if cap_log2 else 0,
        fill=fill,
        value_bytes=1 << book_log2,
        row_items=ROW_UNIT * row_units,
    )
    if alphabet == RAW:
        check(compact or directory_bytes == 8 * blocks, f"a directory of {directory_bytes} bytes", str(8 * blocks))
        want = segment.data_offset + decoded_bytes
        check(coded_bytes == want, f"{coded_bytes} coded bytes", str(want))
    elif compact:
        check(coded_bytes <= decoded_bytes + 2, f"{coded_bytes} coded bytes", f"at most {decoded_bytes + 2}")
    return segment, at + size
