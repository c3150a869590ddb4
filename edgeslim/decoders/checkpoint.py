"""The tensors of a decoder's checkpoint, one at a time: safetensors files, or what a torch module holds.

Nothing is mapped: a mapped file's pages would count as this process's memory for as long as the system has room. A
tensor is read when it is asked for, and forgotten with its array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.decoders.shape import DecoderShape
from edgeslim.decoders.stored_blocks import StoredBlocks
from edgeslim.errors import BadInputError
from edgeslim.tensor_files import StoredTensor, read_safetensors

__all__ = ["ArrayCheckpoint", "Checkpoint", "SafetensorsCheckpoint"]

FloatArray = npt.NDArray[np.float32]
_KINDS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


class Checkpoint(Protocol):
    """A decoder's weights by the names that transformers gives them."""

    shape: DecoderShape

    def read(self, name: str) -> FloatArray:
        """The tensor ``name`` as float32, in the shape of ``DecoderShape.tensor_shapes``.

        Raises:
            BadInputError: it isn't there, has another shape, or holds NaN or infinities.
        """
        ...

    def read_blocks(self, name: str) -> StoredBlocks | None:
        """The same tensor in the blocks of few bits in which it is stored; ``None`` where it is stored as floats."""
        ...


class SafetensorsCheckpoint:
    """One or several ``.safetensors`` files."""

    def __init__(self, folder: Path, shape: DecoderShape) -> None:
        """Reads the headers of the files in ``folder``.

        Raises:
            BadInputError: a file is malformed.
        """
        self.shape = shape
        self._where = str(folder)
        found = read_safetensors(sorted(folder.glob("*.safetensors")))
        self._tensors = {tensor.name: tensor for tensor in found.tensors}
        self._wanted = shape.tensor_shapes()

    def read(self, name: str) -> FloatArray:
        """As ``Checkpoint`` has it."""
        return check_tensor(_read_floats(_take(self._tensors, name, self._where)), name, self._wanted, self._where)

    def read_blocks(self, name: str) -> None:  # noqa: ARG002
        """None: they are floats."""
        return


class ArrayCheckpoint:
    """Arrays that are in memory, or are made when they are asked for."""

    def __init__(self, arrays: Mapping[str, Callable[[], npt.NDArray[Any]]], shape: DecoderShape) -> None:
        self.shape = shape
        self._arrays = arrays
        self._wanted = shape.tensor_shapes()

    def read(self, name: str) -> FloatArray:
        """As ``Checkpoint`` has it."""
        array = np.asarray(_take(self._arrays, name, "the model")(), np.float32)
        return check_tensor(array, name, self._wanted, "the model")

    def read_blocks(self, name: str) -> None:  # noqa: ARG002
        """None: they are floats."""
        return


def check_tensor(array: FloatArray, name: str, wanted: Mapping[str, tuple[int, ...]], where: str) -> FloatArray:
    """``array``, if it has the shape that a decoder's tensor ``name`` has, and only finite values.

    Raises:
        BadInputError: it isn't so.
    """
    place = f"{where}: tensor {name}"
    if array.shape != wanted[name]:
        raise BadInputError(place, f"shape {list(array.shape)}", expected=str(list(wanted[name])))
    if not np.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
        raise BadInputError(place, "NaN or infinite weights", expected="finite weights")
    return array


def _take(table: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in table:
        raise BadInputError(where, f'no tensor "{name}"', expected="all tensors of a Llama-shaped decoder")
    return table[name]


def _read_floats(tensor: StoredTensor) -> FloatArray:
    if tensor.dtype not in _KINDS:
        raise BadInputError(f"tensor {tensor.name}", tensor.dtype, expected="one of " + ", ".join(_KINDS))
    raw = bytearray(tensor.bytes)
    at = 0
    for chunk in tensor.chunks():
        raw[at : at + len(chunk)] = chunk
        at += len(chunk)
    values = np.frombuffer(raw, _KINDS[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
