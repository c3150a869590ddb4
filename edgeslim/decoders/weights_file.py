"""Weights appended to a graph's ``weights.bin`` as they are made, so that no more than one of them is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.graph import INLINE_BYTES, PAGE_BYTES, PAGED_BYTES, WEIGHTS_NAME

__all__ = ["WeightsWriter"]


class WeightsWriter:
    """Writes the ``weights.bin`` of a new folder; to be closed, or used as a context."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._stream: BinaryIO = (folder / WEIGHTS_NAME).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, name: str, array: npt.NDArray[np.generic]) -> ir.TensorProtocol:
        """The tensor ``name``: in the file, or by itself where it takes up to 256 bytes."""
        contiguous = np.ascontiguousarray(array).reshape(array.shape)  # it would give a scalar an axis
        if contiguous.nbytes <= INLINE_BYTES:
            return ir.tensor(contiguous, name=name)
        align = PAGE_BYTES if contiguous.nbytes >= PAGED_BYTES else 16
        self._stream.write(bytes(-self._stream.tell() % align))
        offset = self._stream.tell()
        self._stream.write(contiguous.data)
        return ir.ExternalTensor(
            location=WEIGHTS_NAME,
            offset=offset,
            length=contiguous.nbytes,
            dtype=ir.DataType.from_numpy(contiguous.dtype),
            shape=ir.Shape(contiguous.shape),
            name=name,
            base_dir=self._folder,
        )
