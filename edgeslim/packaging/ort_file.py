"""Finds the initializers of a model in ONNX Runtime's own format (``.ort``), by walking its flatbuffer.

A flatbuffer is tables that point to each other. A table begins with a signed distance back to its vtable, which has
the table's fields by number: two bytes each, the field's distance from the table's start, or 0 where it is absent. A
string, vector or table in a field is an unsigned distance forward; a vector begins with its length. Fields by number,
as ``onnxruntime/core/flatbuffers/schema/ort.fbs`` has them::

    InferenceSession  1 model
    Model             7 graph
    Graph             0 initializers, a vector of Tensor
    Tensor            0 name, 2 dims (a vector of int64), 3 data_type (int32), 4 raw_data (a vector of bytes)

What is found only says where a file may be cut into tensors, so nothing here is an error: a walk that leaves the file,
or that would follow more than it should, ends, and what it found until then counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["OrtTensor", "find_tensors"]

MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_NAME_BYTES = 1_024
_ROOT_MODEL, _MODEL_GRAPH, _GRAPH_INITIALIZERS = 1, 7, 0
_NAME, _DIMS, _TYPE, _RAW = 0, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class OrtTensor:
    """An initializer, and where its bytes lie; ``data_type`` is ONNX's number."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    start: int
    size: int


def find_tensors(data: npt.NDArray[np.uint8]) -> tuple[OrtTensor, ...]:
    """The initializers of the main graph in ``data``, the whole file; none if it is no ``.ort`` file."""
    if data.nbytes < 8 or data[4:8].tobytes() != b"ORTM":
        return ()
    found: list[OrtTensor] = []
    try:
        for tensor in _walk(_Buffer(data)):
            found.append(tensor)  # noqa: PERF402  (kept if the walk fails later)
    except (struct.error, ValueError):
        pass
    return tuple(found)


class _Buffer:
    """Bounded reads; ``struct.error`` or ``ValueError`` for a place outside the file."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data = data

    def read(self, kind: str, at: int) -> int:
        size = struct.calcsize(kind)
        if not 0 <= at <= self._data.nbytes - size:
            raise ValueError(at)
        return int(struct.unpack(kind, self._data[at : at + size].tobytes())[0])

    def bytes(self, at: int, size: int) -> bytes:
        if not 0 <= at <= self._data.nbytes - size:
            raise ValueError(at)
        return self._data[at : at + size].tobytes()

    def field(self, table: int, number: int) -> int | None:
        """Where a field of ``table`` lies, or ``None`` if it is absent."""
        vtable = table - self.read("<i", table)
        entry = 4 + 2 * number
        if entry + 2 > self.read("<H", vtable):
            return None
        offset = self.read("<H", vtable + entry)
        return table + offset if offset else None

    def target(self, table: int, number: int) -> int | None:
        """Where the table, vector or string lies that a field points to."""
        at = self.field(table, number)
        return None if at is None else at + self.read("<I", at)

    def vector(self, table: int, number: int, item_bytes: int) -> tuple[int, int]:
        """Start and length of a vector, which lies in the file as a whole; (0, 0) if it is absent."""
        at = self.target(table, number)
        if at is None:
            return 0, 0
        length = self.read("<I", at)
        if at + 4 + length * item_bytes > self._data.nbytes:
            raise ValueError(at)
        return at + 4, length


def _walk(buffer: _Buffer) -> Iterator[OrtTensor]:
    model = buffer.target(buffer.read("<I", 0), _ROOT_MODEL)
    graph = None if model is None else buffer.target(model, _MODEL_GRAPH)
    if graph is None:
        return
    first, count = buffer.vector(graph, _GRAPH_INITIALIZERS, 4)
    for at in range(first, first + 4 * min(count, MAX_TENSORS), 4):
        table = at + buffer.read("<I", at)
        start, size = buffer.vector(table, _RAW, 1)
        dims, rank = buffer.vector(table, _DIMS, 8)
        name, length = buffer.vector(table, _NAME, 1)
        if size and rank <= MAX_RANK:
            kind = buffer.field(table, _TYPE)
            yield OrtTensor(
                name=buffer.bytes(name, min(length, MAX_NAME_BYTES)).decode("utf-8", "replace"),
                data_type=0 if kind is None else buffer.read("<i", kind),
                shape=tuple(buffer.read("<q", dims + 8 * axis) for axis in range(rank)),
                start=start,
                size=size,
            )
