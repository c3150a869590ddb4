"""Builds containers byte by byte, sound ones and broken ones, without the encoder.

Whatever is broken on purpose, the hashes around it are right, so that a decoder gets as far as the broken place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edgeslim.codec.format import hash32

RAW, PLAIN, PAIR, GAP, MASK8, PLANES, JOINT = range(7)
COMPACT, NIBBLE = 1, 2


def bits(text: str) -> bytes:
    """A stream: the codes in ``text`` (spaces between), then the sentinel, then zeros to the byte's end."""
    sequence = text.replace(" ", "") + "1"
    return bytes(
        sum(1 << k for k, bit in enumerate(sequence[at : at + 8]) if bit == "1") for at in range(0, len(sequence), 8)
    )


def nibbles(lengths: list[int]) -> bytes:
    padded = lengths + [0] * (len(lengths) % 2)
    return bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))


def table(lengths: dict[int, int]) -> bytes:
    """A table in form 2, which lists the used symbols."""
    return bytes([2, len(lengths) - 1, *lengths]) + nibbles(list(lengths.values()))


def block(mode: int, table_set: bytes | int, streams: list[bytes]) -> bytes:
    """A block with its own table set (bytes) or one of the directory (its index)."""
    head = bytes([mode, 255]) + table_set if isinstance(table_set, bytes) else bytes([mode, table_set])
    sizes = b"".join(len(stream).to_bytes(3, "little") for stream in streams[:-1])
    return head + sizes + b"".join(streams)


def stored(data: bytes) -> bytes:
    return b"\x00\x00" + data


@dataclass(kw_only=True)
class Part:
    """One segment; ``None`` fields are filled in so that the container is sound."""

    image: bytes
    alphabet: int = RAW
    blocks: list[bytes] | None = None
    sets: bytes = b"\x00"
    block_log2: int = 0
    name: bytes = b"w"
    dtype: int = 0
    shape: tuple[int, ...] = ()
    flags: int | None = None
    cap_log2: int = 0
    fill: int = 0
    nibble: bool = False
    book_log2: int = 0
    book: bytes = b""
    row_units: int = 0
    ends: list[int] | None = None
    directory: bytes | None = None
    hash: int | None = None
    decoded_offset: int | None = None
    coded_offset: int | None = None
    decoded_bytes: int | None = None
    coded_bytes: int | None = None
    directory_bytes: int | None = None
    rank: int | None = None
    name_bytes: int | None = None

    def payload(self) -> tuple[bytes, bytes]:
        """Directory and data."""
        size = 1 << self.block_log2
        raw = [self.image[at : at + size] for at in range(0, len(self.image), size)] if self.block_log2 else []
        if self.block_log2 == 0:
            return b"", self.image if self.blocks is None else self.book + b"".join(self.blocks)
        blocks = raw if self.blocks is None else self.blocks
        directory, end = b"", 0
        for number, coded in enumerate(blocks):
            end += len(coded)
            directory += struct.pack("<II", self.ends[number] if self.ends else end, hash32(coded))
        directory += self.book + (b"" if self.alphabet == RAW else self.sets)
        return directory if self.directory is None else self.directory, b"".join(blocks)


def first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def assemble(parts: list[Part], *, tail: bytes = b"", padding: int = 0, **header: int) -> bytes:
    """A container of ``parts``; ``header`` overrides its fields, ``padding`` is the byte that aligns payloads."""
    index_bytes = sum(44 + 4 * len(part.shape) + len(part.name) for part in parts)
    end = 64 + index_bytes
    index, payloads, image = b"", b"", b""
    for part in parts:
        directory, data = part.payload()
        compact = part.block_log2 == 0
        start = end if compact else -(-end // 64) * 64
        inner = -(start + len(directory)) % 64 if part.alphabet == RAW and not compact else 0
        payload = directory + bytes([padding]) * inner + data
        hashed = hash32(payload if compact else directory)
        flags = (COMPACT if compact else 0) | (NIBBLE if part.nibble else 0)
        index += struct.pack(
            "<QQIIIIHBBBBBBBBH",
            first(part.decoded_offset, len(image)), first(part.coded_offset, start),
            first(part.decoded_bytes, len(part.image)), first(part.coded_bytes, len(payload)),
            first(part.directory_bytes, len(directory)), first(part.hash, hashed),
            first(part.name_bytes, len(part.name)), part.alphabet, part.dtype, first(part.rank, len(part.shape)),
            part.block_log2, first(part.flags, flags), part.cap_log2, part.fill,
            part.book_log2, part.row_units,
        )  # fmt: skip
        index += struct.pack(f"<{len(part.shape)}I", *part.shape) + part.name
        payloads += bytes([padding]) * (start - end) + payload
        image += part.image
        end = 64 + index_bytes + len(payloads)
    head = struct.pack(
        "<8sHHIIIQQQIII",
        b"\x89ESZ\r\n\x1a\n", header.get("version", 1), header.get("header_bytes", 64), header.get("required", 0),
        header.get("optional", 0), header.get("count", len(parts)), header.get("index_bytes", index_bytes),
        header.get("decoded_bytes", len(image)), header.get("file_bytes", end + len(tail)),
        header.get("image_hash", hash32(image)), header.get("reserved", 0), header.get("index_hash", hash32(index)),
    )  # fmt: skip
    return head + struct.pack("<I", hash32(head)) + index + payloads + tail
