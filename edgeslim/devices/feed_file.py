"""Files of named tensors, which carry inputs to a device and outputs back.

Little-endian: ``EDGEFEED``, u32 version (1), u32 count of feeds; a feed is a u32 count of tensors; a tensor is u32
length of the name, the name in UTF-8, i32 element type (ONNX's numbers), u32 rank, i64 dimensions, u64 bytes, the
bytes.
``devices/c/feed_file.h`` reads and writes the same. What comes back from a device is believed no further than its size.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeslim.core import Feed
from edgeslim.errors import CheckError

__all__ = ["read_feeds", "write_feeds"]

MAGIC = b"EDGEFEED"
VERSION = 1
MAX_NAME = 1024
MAX_RANK = 8
MAX_TENSORS = 256
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
_NUMBERS = {name: number for number, name in ELEMENT_TYPES.items()}


def write_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Writes ``feeds`` to ``path``.

    Raises:
        CheckError: a tensor of a type that a runner can't carry, such as strings.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<II", VERSION, len(feeds)))
        for feed in feeds:
            file.write(struct.pack("<I", len(feed)))
            for name, value in feed.items():
                array = np.ascontiguousarray(value)
                number = _NUMBERS.get(str(array.dtype))
                label = name.encode()
                if number is None or len(label) > MAX_NAME or array.ndim > MAX_RANK:
                    raise CheckError(
                        f'input "{name[:80]}"',
                        f"{array.dtype} with {array.ndim} dimensions",
                        expected=f"at most {MAX_RANK} dimensions of " + ", ".join(_NUMBERS),
                    )
                file.write(struct.pack("<I", len(label)) + label)
                file.write(struct.pack(f"<iI{array.ndim}qQ", number, array.ndim, *array.shape, array.nbytes))
                file.write(array.tobytes())


def read_feeds(path: Path, *, expected: int, where: str) -> list[Feed]:
    """The ``expected`` feeds of a file that a device wrote.

    Raises:
        CheckError: it is malformed or cut off, or holds another number of feeds.
    """
    data = memoryview(path.read_bytes())
    reader = _Reader(data, where)
    if bytes(reader.take(8)) != MAGIC or reader.unpack("<I") != (VERSION,):
        raise reader.wrong("no feed file")
    (count,) = reader.unpack("<I")
    if count != expected:
        raise reader.wrong(f"outputs of {count} runs, not of {expected}")
    feeds = [_read_feed(reader) for _ in range(count)]
    if reader.left():
        raise reader.wrong(f"{reader.left()} bytes too many")
    return feeds


class _Reader:
    def __init__(self, data: memoryview, where: str) -> None:
        self._data, self._at, self._where = data, 0, where

    def left(self) -> int:
        return len(self._data) - self._at

    def wrong(self, what: str) -> CheckError:
        return CheckError(f"{self._where}: outputs", what, expected="the outputs of every run, whole")

    def take(self, size: int) -> memoryview:
        if size > self.left():
            raise self.wrong("cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))


def _read_feed(reader: _Reader) -> Feed:
    (count,) = reader.unpack("<I")
    if count > MAX_TENSORS:
        raise reader.wrong(f"{count} tensors in one run")
    feed = {}
    for _ in range(count):
        (length,) = reader.unpack("<I")
        if length > MAX_NAME:
            raise reader.wrong(f"a name of {length} bytes")
        name = bytes(reader.take(length)).decode("utf-8", "replace")
        number, rank = reader.unpack("<iI")
        if number not in ELEMENT_TYPES or rank > MAX_RANK:
            raise reader.wrong(f'"{name[:80]}" has element type {number} and {rank} dimensions')
        shape = reader.unpack(f"<{rank}q")
        (size,) = reader.unpack("<Q")
        kind = np.dtype(ELEMENT_TYPES[number])
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != size:
            raise reader.wrong(f'"{name[:80]}" has {size} bytes for the shape {list(shape)}')
        feed[name] = np.frombuffer(reader.take(size), kind).reshape(shape).copy()
    return feed
