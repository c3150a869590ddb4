"""Decodes ESZ containers with the C decoder, the very source that a device compiles.

``decode_container`` works in memory. ``decode_file`` reads front to back and holds one directory, one coded block and
one decoded block at a time, as a device that writes flash would. ``read_index`` reads no payload.

A malformed container raises ``BadInputError``, which names the byte and the segment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from edgeslim.codec import format as esz
from edgeslim.codec.library import load_library
from edgeslim.errors import BadInputError

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
    7: ("no required feature bit but CODEBOOK", _NEWER),
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
        ("required_features", ctypes.c_uint32),
        ("optional_features", ctypes.c_uint32),
        ("segment_count", ctypes.c_uint32),
        ("image_hash", ctypes.c_uint32),
        ("index_hash", ctypes.c_uint32),
        ("index_bytes", ctypes.c_uint64),
        ("decoded_bytes", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
    )


class _Segment(ctypes.Structure):
    _fields_ = (
        ("decoded_offset", ctypes.c_uint64),
        ("coded_offset", ctypes.c_uint64),
        ("decoded_bytes", ctypes.c_uint32),
        ("coded_bytes", ctypes.c_uint32),
        ("directory_bytes", ctypes.c_uint32),
        ("hash", ctypes.c_uint32),
        ("data_offset", ctypes.c_uint32),
        ("block_bytes", ctypes.c_uint32),
        ("block_count", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("shape", ctypes.c_uint32 * esz.MAX_RANK),
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint16),
        ("alphabet", ctypes.c_uint8),
        ("dtype", ctypes.c_uint8),
        ("rank", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("cap_log2", ctypes.c_uint8),
        ("fill", ctypes.c_uint8),
        ("book_log2", ctypes.c_uint8),
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


def decode_container(data: bytes | bytearray | memoryview) -> bytearray:
    """The image that the container ``data`` holds; all hashes are checked.

    Raises:
        BadInputError: the container is malformed.
    """
    source = _array(data)
    decoder = _Decoder("container")
    header = decoder.header(source)
    if header.file_bytes != source.nbytes:
        decoder.check(9, 40)
    for _ in decoder.segments(header, source[esz.HEADER_BYTES : esz.HEADER_BYTES + header.index_bytes]):
        pass  # nothing is allocated for an index that is not sound
    image = bytearray(header.decoded_bytes)
    target = _array(image)
    where = _Where()
    status = decoder.library.esz_decode_image(
        decoder.work, source.ctypes.data, source.nbytes, target.ctypes.data, target.nbytes, 0, ctypes.byref(where)
    )
    decoder.check(status, where.offset, where.segment, where.block)
    return image


def decode_file(src: Path, dst: Path) -> None:
    """Decodes the container ``src`` into the file ``dst``, front to back; ``dst`` appears whole or not at all.

    Raises:
        BadInputError: the container is malformed.
    """
    src, dst = Path(src), Path(dst)
    handle, name = tempfile.mkstemp(dir=dst.parent, prefix=f".{dst.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as target, src.open("rb") as source:
            _decode_stream(source, target, str(src))
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(dst)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)
        raise


def _decode_stream(source: IO[bytes], target: IO[bytes], name: str) -> None:
    decoder = _Decoder(name)
    library = decoder.library
    header = decoder.header(_array(source.read(esz.HEADER_BYTES)))
    size = os.fstat(source.fileno()).st_size
    if header.file_bytes != size:
        decoder.check(9, 40)
    index = _array(source.read(header.index_bytes))
    segments = tuple(decoder.segments(header, index))
    largest = max((segment.block_bytes for segment in segments), default=0)
    decoded = np.empty(largest, np.uint8)
    state = ctypes.create_string_buffer(library.esz_hash_begin(None))
    library.esz_hash_begin(state)
    library.esz_hash_add.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    library.esz_hash_end.restype = ctypes.c_uint32
    end = esz.HEADER_BYTES + header.index_bytes
    offset, coded_bytes, decoded_bytes = ctypes.c_uint32(), ctypes.c_uint32(), ctypes.c_uint32()
    for number, segment in enumerate(segments):
        if any(source.read(segment.coded_offset - end)):
            decoder.check(13, end, number)
        directory = _array(source.read(segment.directory_bytes))
        status = library.esz_segment_begin(
            decoder.work, ctypes.byref(segment), directory.ctypes.data, directory.nbytes
        )  # fmt: skip
        decoder.check(status, segment.coded_offset, number)
        if any(source.read(segment.data_offset - segment.directory_bytes)):
            decoder.check(13, segment.coded_offset + segment.directory_bytes, number)
        for block in range(segment.block_count):
            library.esz_block_at(
                decoder.work, block, ctypes.byref(offset), ctypes.byref(coded_bytes), ctypes.byref(decoded_bytes)
            )
            coded = _array(source.read(coded_bytes.value))
            out = decoded[: decoded_bytes.value]
            status = library.esz_block_decode(
                decoder.work, block, coded.ctypes.data, coded.nbytes, out.ctypes.data, out.nbytes
            )
            decoder.check(status, segment.coded_offset + segment.data_offset + offset.value, number, block)
            library.esz_hash_add(state, out.ctypes.data, out.nbytes)
            target.write(out.data)
        end = segment.coded_offset + segment.coded_bytes
    if library.esz_hash_end(state) != header.image_hash:
        decoder.check(20, 48)


def _array(data: bytes | bytearray | memoryview) -> npt.NDArray[np.uint8]:
    """The bytes as an array that shares their memory."""
    return np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, np.uint8)
