"""Decodes ESZ containers with the C decoder, the very source that a device compiles.

``decode_container`` works in memory, with as many threads as one likes. ``decode_file`` reads front to back and holds
one directory, one coded block and one decoded block at a time, as a device that writes flash would. ``read_index``
reads no payload.

A malformed container raises ``BadInputError``, which names the byte and the segment.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from edgeslim.codec import format as esz
from edgeslim.codec.library import load_library
from edgeslim.errors import BadInputError
from edgeslim.replacing import replaced_when_whole

__all__ = ["decode_container", "decode_file", "read_index"]

_NOWHERE = 0xFFFFFFFF
_OK, _END = 0, 1
_NEWER = "a newer edgeslim may read it"
_DAMAGED = "the file is damaged or was cut off: copy or build it again"
_BROKEN = "its hashes are right, so a program that breaks the format wrote it"

# What a status of the C decoder expected, and how to go on.
_MEANING: dict[int, tuple[str, str]] = {
    3: (f"at least {esz.HEADER_BYTES} bytes", _DAMAGED),
    4: (f"magic {esz.MAGIC.hex()}", "this is not an ESZ container"),
    5: (f"version {esz.VERSION}", _NEWER),
    6: ("the hash of bytes 0 to 59 at byte 60", _DAMAGED),
    7: ("no required feature bit but CODEBOOK, PLANES and ROWS", _NEWER),
    8: ("fields within the limits of FORMAT.md, section 2", _BROKEN),
    9: ("the size that the header gives", _DAMAGED),
    10: ("the hash at byte 56", _DAMAGED),
    11: ("an entry as FORMAT.md, section 3, has it", _BROKEN),
    12: ("one of " + ", ".join(esz.ALPHABETS), _NEWER),
    13: ("zero bytes", _DAMAGED),
    14: ("the hash that the index gives", _DAMAGED),
    15: ("a directory as FORMAT.md, section 4, has it", _BROKEN),
    16: ("a complete prefix code within the length limit", _BROKEN),
    17: ("the hash that the directory or index gives", _DAMAGED),
    18: ("a block as FORMAT.md, section 5, has it", _BROKEN),
    19: ("all items, then a sentinel bit and zero bits", _BROKEN),
    20: ("the hash at byte 48", _BROKEN),
}


class _Header(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint16),
        ("header_bytes", ctypes.c_uint16),
        ("required_features", ctypes.c_uint32),
        ("optional_features", ctypes.c_uint32),
        ("segment_count", ctypes.c_uint32),
        ("index_bytes", ctypes.c_uint64),
        ("decoded_bytes", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("image_hash", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("index_hash", ctypes.c_uint32),
        ("header_hash", ctypes.c_uint32),
    )


class _Segment(ctypes.Structure):
    _fields_ = (
        ("decoded_offset", ctypes.c_uint64),
        ("coded_offset", ctypes.c_uint64),
        ("decoded_bytes", ctypes.c_uint32),
        ("coded_bytes", ctypes.c_uint32),
        ("directory_bytes", ctypes.c_uint32),
        ("hash", ctypes.c_uint32),
        ("name_bytes", ctypes.c_uint16),
        ("alphabet", ctypes.c_uint8),
        ("dtype", ctypes.c_uint8),
        ("rank", ctypes.c_uint8),
        ("block_log2", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("cap_log2", ctypes.c_uint8),
        ("fill", ctypes.c_uint8),
        ("book_log2", ctypes.c_uint8),
        ("row_units", ctypes.c_uint16),
        ("data_offset", ctypes.c_uint32),
        ("block_bytes", ctypes.c_uint32),
        ("block_count", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("row_items", ctypes.c_uint32),
        ("shape", ctypes.c_uint32 * esz.MAX_RANK),
        ("name", ctypes.c_void_p),
    )


class _Cursor(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_void_p),
        ("index_bytes", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("decoded_sum", ctypes.c_uint64),
        ("coded_end", ctypes.c_uint64),
        ("decoded_bytes", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
    )


class _Where(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("segment", ctypes.c_uint32), ("block", ctypes.c_uint32))


class _Decoder:
    """The C decoder with its work space; raises what its statuses mean."""

    def __init__(self, source: str) -> None:
        library = load_library()
        library.esz_decoder_bytes.restype = ctypes.c_size_t
        library.esz_status_text.restype = ctypes.c_char_p
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        library.esz_parse_header.argtypes = (pointer, size, pointer)
        library.esz_index_begin.argtypes = (pointer, pointer, pointer, size)
        library.esz_index_next.argtypes = (pointer, pointer)
        library.esz_segment_begin.argtypes = (pointer, pointer, pointer, size)
        library.esz_block_at.argtypes = (pointer, ctypes.c_uint32, pointer, pointer, pointer)
        library.esz_block_decode.argtypes = (pointer, ctypes.c_uint32, pointer, size, pointer, size)
        library.esz_decode_image.argtypes = (pointer, pointer, size, pointer, size, ctypes.c_uint32, pointer)
        self.library = library
        self.source = source
        self.work = ctypes.create_string_buffer(library.esz_decoder_bytes())

    def check(self, status: int, offset: int, segment: int = _NOWHERE, block: int = _NOWHERE) -> None:
        """Raises the error for a ``status`` that is not fine."""
        if status == _OK:
            return
        text = self.library.esz_status_text(status).decode()
        place = f"byte {offset}"
        place += f", segment {segment}" if segment != _NOWHERE else ""
        place += f", block {block}" if block != _NOWHERE else ""
        expected, hint = _MEANING.get(status, ("", ""))
        raise BadInputError(f"{self.source}: {place}", text, expected=expected, hint=hint)

    def begin(self, segment: _Segment, directory: npt.NDArray[np.uint8], number: int) -> None:
        """Makes ready for a segment: its directory and tables are checked."""
        self.directory = directory  # must stay while blocks are decoded
        status = self.library.esz_segment_begin(
            self.work, ctypes.byref(segment), directory.ctypes.data, directory.nbytes
        )  # fmt: skip
        self.check(status, segment.coded_offset, number)

    def block_at(self, block: int) -> tuple[int, int, int]:
        """Offset in the segment's data, coded size and decoded size of a block."""
        found = (ctypes.c_uint32 * 3)()
        at = ctypes.addressof(found)
        self.library.esz_block_at(self.work, block, at, at + 4, at + 8)
        return found[0], found[1], found[2]

    def block(
        self, segment: _Segment, block: int, coded: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], start: int
    ) -> None:
        """Decodes one block; ``start``: where it lies in the payload."""
        status = self.library.esz_block_decode(
            self.work, block, coded.ctypes.data, coded.nbytes, out.ctypes.data, out.nbytes
        )  # fmt: skip
        self.check(status, segment.coded_offset + start, segment.number, block)

    def header(self, data: npt.NDArray[np.uint8]) -> _Header:
        header = _Header()
        self.check(self.library.esz_parse_header(data.ctypes.data, data.nbytes, ctypes.byref(header)), 0)
        return header

    def segments(self, header: _Header, index: npt.NDArray[np.uint8]) -> Iterator[_Segment]:
        """All segments of the index; the whole index is sound if this ends without an error."""
        cursor = _Cursor()
        status = self.library.esz_index_begin(
            ctypes.byref(cursor), ctypes.byref(header), index.ctypes.data, index.nbytes
        )  # fmt: skip
        self.check(status, esz.HEADER_BYTES)
        while True:
            segment = _Segment()
            offset, number = esz.HEADER_BYTES + cursor.at, cursor.number
            status = self.library.esz_index_next(ctypes.byref(cursor), ctypes.byref(segment))
            if status == _END:
                return
            self.check(status, offset, number)
            yield segment


class _ImageHash:
    """The hash of the image, in pieces."""

    def __init__(self) -> None:
        library = load_library()
        library.esz_hash_begin.restype = ctypes.c_size_t
        library.esz_hash_begin.argtypes = (ctypes.c_void_p,)
        library.esz_hash_add.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        library.esz_hash_end.restype = ctypes.c_uint32
        self.library = library
        self.state = ctypes.create_string_buffer(library.esz_hash_begin(None))
        library.esz_hash_begin(self.state)

    def add(self, data: npt.NDArray[np.uint8]) -> None:
        self.library.esz_hash_add(self.state, data.ctypes.data, data.nbytes)

    def check(self, header: _Header, source: str) -> None:
        if self.library.esz_hash_end(self.state) != header.image_hash:
            _Decoder(source).check(20, 48)


def read_index(path: Path) -> esz.ContainerInfo:
    """What the container ``path`` holds, by its header and index; no payload is read.

    Raises:
        BadInputError: header or index is malformed, or the file's size is not the one in the header.
    """
    path = Path(path)
    with path.open("rb") as file:
        header = esz.parse_header(file.read(esz.HEADER_BYTES), str(path))
        size = path.stat().st_size
        if size != header.file_bytes:
            raise esz.malformed(str(path), "size", f"{size} bytes", f"{header.file_bytes}")
        return esz.parse_index(header, file.read(header.index_bytes), str(path))


def decode_container(data: bytes | bytearray | memoryview, *, threads: int = 1) -> bytearray:
    """The image that the container ``data`` holds; all hashes are checked.

    Args:
        data: the whole container.
        threads: how many threads decode blocks at the same time.

    Raises:
        BadInputError: the container is malformed.
    """
    source = _array(data)
    decoder = _Decoder("container")
    header = decoder.header(source)
    if header.file_bytes != source.nbytes:
        decoder.check(9, 40)
    # All of the index, so that nothing is allocated for one that is not sound.
    segments = tuple(decoder.segments(header, source[esz.HEADER_BYTES : esz.HEADER_BYTES + header.index_bytes]))
    image = bytearray(header.decoded_bytes)
    target = _array(image)
    if threads > 1:
        _decode_parallel(header, segments, source, target, threads)
        return image
    where = _Where()
    status = decoder.library.esz_decode_image(
        decoder.work, source.ctypes.data, source.nbytes, target.ctypes.data, target.nbytes, 0, ctypes.byref(where)
    )
    decoder.check(status, where.offset, where.segment, where.block)
    return image


def _decode_parallel(
    header: _Header,
    segments: tuple[_Segment, ...],
    source: npt.NDArray[np.uint8],
    target: npt.NDArray[np.uint8],
    threads: int,
) -> None:
    """Decodes stretches of blocks in ``threads`` threads, each with a decoder of its own."""
    share = max(1, header.decoded_bytes // (4 * threads))
    stretches = []
    for number, segment in enumerate(segments):
        step = max(1, share // max(1, segment.block_bytes))
        stretches += [(number, first, step) for first in range(0, max(1, segment.block_count), step)]
    local = threading.local()

    def decode(stretch: tuple[int, int, int]) -> None:
        number, first, step = stretch
        segment = segments[number]
        if not hasattr(local, "decoder"):
            local.decoder = _Decoder("container")
        decoder: _Decoder = local.decoder
        end = segments[number - 1].coded_offset + segments[number - 1].coded_bytes if number else 0
        end = end or esz.HEADER_BYTES + header.index_bytes
        if first == 0 and source[end : segment.coded_offset].any():
            decoder.check(13, end, number)
        payload = source[segment.coded_offset : segment.coded_offset + segment.coded_bytes]
        decoder.begin(segment, payload[: segment.directory_bytes], number)
        if first == 0 and payload[segment.directory_bytes : segment.data_offset].any():
            decoder.check(13, segment.coded_offset + segment.directory_bytes, number)
        for block in range(first, min(first + step, segment.block_count)):
            offset, coded_bytes, decoded_bytes = decoder.block_at(block)
            start = segment.data_offset + offset
            to = segment.decoded_offset + block * segment.block_bytes
            decoder.block(segment, block, payload[start : start + coded_bytes], target[to : to + decoded_bytes], start)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, stretches):
            pass
    image_hash = _ImageHash()
    image_hash.add(target)
    image_hash.check(header, "container")


def decode_file(src: Path, dst: Path) -> None:
    """Decodes the container ``src`` into the file ``dst``, front to back; ``dst`` appears whole or not at all.

    Raises:
        BadInputError: the container is malformed.
    """
    src, dst = Path(src), Path(dst)
    with replaced_when_whole(dst) as temporary, temporary.open("wb") as target, src.open("rb") as source:
        _decode_stream(source, target, str(src))


def _decode_stream(source: IO[bytes], target: IO[bytes], name: str) -> None:
    decoder = _Decoder(name)
    header = decoder.header(_array(source.read(esz.HEADER_BYTES)))
    size = os.fstat(source.fileno()).st_size
    if header.file_bytes != size:
        decoder.check(9, 40)
    index = _array(source.read(header.index_bytes))
    segments = tuple(decoder.segments(header, index))
    largest = max((segment.block_bytes for segment in segments), default=0)
    decoded = np.empty(largest, np.uint8)
    image_hash = _ImageHash()
    end = esz.HEADER_BYTES + header.index_bytes
    for number, segment in enumerate(segments):
        if any(source.read(segment.coded_offset - end)):
            decoder.check(13, end, number)
        decoder.begin(segment, _array(source.read(segment.directory_bytes)), number)
        if any(source.read(segment.data_offset - segment.directory_bytes)):
            decoder.check(13, segment.coded_offset + segment.directory_bytes, number)
        for block in range(segment.block_count):
            offset, coded_bytes, decoded_bytes = decoder.block_at(block)
            out = decoded[:decoded_bytes]
            decoder.block(segment, block, _array(source.read(coded_bytes)), out, segment.data_offset + offset)
            image_hash.add(out)
            target.write(out.data)
        end = segment.coded_offset + segment.coded_bytes
    image_hash.check(header, name)


def _array(data: bytes | bytearray | memoryview) -> npt.NDArray[np.uint8]:
    """The bytes as an array that shares their memory."""
    return np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, np.uint8)
