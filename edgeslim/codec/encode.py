"""Writes ESZ containers: the C coder codes one segment at a time, this module lays out the file (FORMAT.md).

The index stands before the payloads, but its size is known beforehand, so the file is written once, front to back,
with room left for header and index, which are filled in at the end. Peak memory is one segment's coder state.
"""

from __future__ import annotations

import ctypes
import io
import math
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeslim.codec import format as esz
from edgeslim.codec.library import load_library
from edgeslim.errors import BadInputError, near_miss
from edgeslim.replacing import replaced_when_whole

__all__ = ["Segment", "encode_container", "write_container"]

SMALL_BLOCK_BYTES = 16_384
MAX_ROW = 8_192


@dataclass(frozen=True)
class Segment:
    """A stretch of the image: a tensor's bytes, or any others.

    ``data`` is anything with a C-contiguous buffer (bytes, memoryview, numpy array); it stays the caller's. ``dtype``
    is one of ``format.DTYPES``. ``shape`` counts values; for ``bytes`` it may be ``()``, and for packed nibbles
    (``uint4x2``, ``int4x2``) it isn't checked against the size.
    """

    name: str
    data: bytes | bytearray | memoryview | npt.NDArray[Any]
    dtype: str
    shape: tuple[int, ...]


class _Options(ctypes.Structure):
    _fields_ = (
        ("block_log2", ctypes.c_uint32),
        ("small", ctypes.c_uint32),
        ("alphabets", ctypes.c_uint32),
        ("streams", ctypes.c_uint32),
        ("item_bytes", ctypes.c_uint32),
        ("row_nibbles", ctypes.c_uint32),
    )


class _Encoded(ctypes.Structure):
    _fields_ = (
        ("alphabet", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("cap_log2", ctypes.c_uint8),
        ("fill", ctypes.c_uint8),
        ("block_log2", ctypes.c_uint8),
        ("book_log2", ctypes.c_uint8),
        ("row_units", ctypes.c_uint16),
        ("coded_bytes", ctypes.c_uint32),
        ("directory_bytes", ctypes.c_uint32),
        ("hash", ctypes.c_uint32),
        ("payload", ctypes.c_void_p),
        ("payload_bytes", ctypes.c_uint32),
    )


class _Hash:
    """The container's hash in pieces, by the C code."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.esz_hash_begin.restype = ctypes.c_size_t
        library.esz_hash_end.restype = ctypes.c_uint32
        library.esz_hash_add.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._state = ctypes.create_string_buffer(library.esz_hash_begin(None))
        library.esz_hash_begin(self._state)

    def add(self, data: npt.NDArray[np.uint8]) -> None:
        self._library.esz_hash_add(self._state, data.ctypes.data, data.nbytes)

    def value(self) -> int:
        return int(self._library.esz_hash_end(self._state))


def write_container(
    path: Path,
    segments: Sequence[Segment],
    *,
    block_bytes: int = 262_144,
    small_memory: bool = False,
    alphabets: Collection[str] = (*esz.ALPHABETS, *esz.EXTRAS),
    progress: Callable[[int], None] | None = None,
) -> esz.ContainerInfo:
    """Codes ``segments`` into the container ``path``; an existing file is replaced at once, or not at all.

    Args:
        path: where the container goes.
        segments: the image, in order.
        block_bytes: decoded bytes a block, a power of two from 4 KiB to 1 MiB. Smaller: finer random access.
        small_memory: for decoders with little memory: blocks of at most 16 KiB, short codes, one stream.
        alphabets: the alphabets that may be used, of ``format.ALPHABETS``; RAW always may. ``"CODEBOOK"`` lets tensors
            of up to 256 different values become indices, ``"ROWS"`` gives classes of rows codes of their own. A decoder
            may lack these and ``"PLANES"``.
        progress: called after each segment with the number of image bytes done.

    Raises:
        BadInputError: a segment or an option is outside the format's limits.
    """
    path = Path(path)
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        return _write(file, segments, block_bytes, small_memory, alphabets, progress)


def encode_container(
    segments: Sequence[Segment],
    *,
    block_bytes: int = 262_144,
    small_memory: bool = False,
    alphabets: Collection[str] = (*esz.ALPHABETS, *esz.EXTRAS),
    progress: Callable[[int], None] | None = None,
) -> bytes:
    """As ``write_container``, but returns the container."""
    file = io.BytesIO()
    _write(file, segments, block_bytes, small_memory, alphabets, progress)
    return file.getvalue()


def _write(
    file: IO[bytes],
    segments: Sequence[Segment],
    block_bytes: int,
    small_memory: bool,  # noqa: FBT001
    alphabets: Collection[str],
    progress: Callable[[int], None] | None,
) -> esz.ContainerInfo:
    options = _options(block_bytes, small_memory=small_memory, alphabets=alphabets)
    if len(segments) > esz.MAX_SEGMENTS:
        raise BadInputError("segments", f"{len(segments)} of them", expected=f"at most {esz.MAX_SEGMENTS}")
    buffers = [_buffer(segment) for segment in segments]
    tails = [_entry_tail(segment) for segment in segments]
    index_bytes = sum(esz.ENTRY.size + len(shape) + len(name) for shape, name in tails)
    if index_bytes > esz.MAX_INDEX_BYTES:
        raise BadInputError("segments", f"an index of {index_bytes} bytes", expected=f"at most {esz.MAX_INDEX_BYTES}")
    library = load_library()
    library.esz_encode_segment.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
    image_hash = _Hash(library)
    index = bytearray()
    features, decoded, end = 0, 0, esz.HEADER_BYTES + index_bytes
    file.write(bytes(end))
    for segment, data, (shape, name) in zip(segments, buffers, tails, strict=True):
        encoded = _Encoded()
        options.item_bytes = esz.dtype_bytes(segment.dtype) or int(segment.dtype in ("uint4x2", "int4x2"))
        options.row_nibbles = _row_nibbles(segment.shape, data.nbytes)
        status = library.esz_encode_segment(data.ctypes.data, data.nbytes, ctypes.byref(options), ctypes.byref(encoded))
        if status != 0:
            raise MemoryError(f"no memory to encode {segment.name}, {data.nbytes} bytes")
        try:
            start = end if encoded.flags & esz.COMPACT else esz.align64(end)
            file.write(bytes(start - end))
            if encoded.payload_bytes:
                file.write(memoryview((ctypes.c_char * encoded.payload_bytes).from_address(encoded.payload)))
        finally:
            library.esz_encoded_free(ctypes.byref(encoded))
        if encoded.payload_bytes < encoded.coded_bytes:
            file.write(data.data)
        index += esz.ENTRY.pack(
            decoded, start, data.nbytes, encoded.coded_bytes, encoded.directory_bytes, encoded.hash, len(name),
            encoded.alphabet, esz.DTYPES.index(segment.dtype), len(segment.shape), encoded.block_log2, encoded.flags,
            encoded.cap_log2, encoded.fill, encoded.book_log2, encoded.row_units,
        )  # fmt: skip
        index += shape + name
        features |= _features(encoded)
        image_hash.add(data)
        decoded += data.nbytes
        end = start + encoded.coded_bytes
        if progress is not None:
            progress(decoded)
    header = esz.HEADER.pack(
        esz.MAGIC, esz.VERSION, esz.HEADER_BYTES, features, 0, len(segments), index_bytes, decoded, end,
        image_hash.value(), 0, esz.hash32(index), 0,
    )  # fmt: skip
    header = header[:60] + struct.pack("<I", esz.hash32(header[:60]))
    file.seek(0)
    file.write(header + index)
    return esz.parse_index(esz.parse_header(header), index)


def _options(block_bytes: int, *, small_memory: bool, alphabets: Collection[str]) -> _Options:
    block_log2 = block_bytes.bit_length() - 1
    in_range = esz.MIN_BLOCK_LOG2 <= block_log2 <= esz.MAX_BLOCK_LOG2
    if not in_range or block_bytes != 1 << block_log2:
        raise BadInputError("block_bytes", str(block_bytes), expected="a power of two from 4096 to 1048576")
    if small_memory:
        block_log2 = min(block_log2, SMALL_BLOCK_BYTES.bit_length() - 1)
    mask = 0
    for name in alphabets:
        known = (*esz.ALPHABETS, *esz.EXTRAS)  # bits of esz_encode_options.alphabets
        if name not in known:
            raise BadInputError("alphabets", f'"{name}"', expected="of " + ", ".join(known))
        mask |= 1 << known.index(name)
    return _Options(block_log2, int(small_memory), mask, 0, 0, 0)


def _features(encoded: _Encoded) -> int:
    if encoded.alphabet == esz.PLANES:
        return esz.FEATURE_PLANES
    return (esz.FEATURE_CODEBOOK if encoded.book_log2 else 0) | (esz.FEATURE_ROWS if encoded.row_units else 0)


def _row_nibbles(shape: tuple[int, ...], size: int) -> int:
    """Half bytes of a row: all but the first dimension, or the last one if that is much; 0 if there are no rows."""
    count = math.prod(shape)
    if len(shape) < 2 or count == 0 or 2 * size % count:
        return 0
    row = math.prod(shape[1:])
    return (row if row <= MAX_ROW else shape[-1]) * (2 * size // count)


def _buffer(segment: Segment) -> npt.NDArray[np.uint8]:
    """The segment's bytes without a copy, once they are found to be within the limits."""
    where = f'segment "{segment.name}"'
    if segment.dtype not in esz.DTYPES:
        raise BadInputError(
            where, f'dtype "{segment.dtype}"', expected="one of " + ", ".join(esz.DTYPES),
            hint=near_miss(segment.dtype, esz.DTYPES),
        )  # fmt: skip
    if isinstance(segment.data, np.ndarray):
        data = np.ascontiguousarray(segment.data).reshape(-1).view(np.uint8)
    else:
        view = memoryview(segment.data)
        if not view.c_contiguous:
            raise BadInputError(where, "a buffer with gaps", expected="a contiguous one")
        data = np.frombuffer(view.cast("B"), dtype=np.uint8) if view.nbytes else np.empty(0, np.uint8)
    if data.nbytes > esz.MAX_SEGMENT_BYTES:
        raise BadInputError(
            where, f"{data.nbytes} bytes", expected=f"at most {esz.MAX_SEGMENT_BYTES}", hint="cut it into segments"
        )  # fmt: skip
    item = esz.dtype_bytes(segment.dtype)
    if item and math.prod(segment.shape) * item != data.nbytes:
        raise BadInputError(
            where, f"{data.nbytes} bytes", expected=f"{math.prod(segment.shape) * item} for shape {segment.shape}"
        )  # fmt: skip
    return data


def _entry_tail(segment: Segment) -> tuple[bytes, bytes]:
    """Shape and name as an index entry holds them."""
    where = f'segment "{segment.name}"'
    name = segment.name.encode()
    if len(name) > esz.MAX_NAME_BYTES or any(byte < 0x20 for byte in name):
        raise BadInputError(where, "its name", expected=f"up to {esz.MAX_NAME_BYTES} bytes, no control characters")
    if len(segment.shape) > esz.MAX_RANK or any(not 0 <= dim <= esz.MAX_DIM for dim in segment.shape):
        raise BadInputError(where, f"shape {segment.shape}", expected=f"up to {esz.MAX_RANK} dimensions below 2^31")
    return struct.pack(f"<{len(segment.shape)}I", *segment.shape), name
