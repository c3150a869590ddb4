"""Weights in the blocks of few bits that a GGUF file stores, as ONNX Runtime's kernels take them.

A block is 32 neighbours of a row with a float16 scale d, and for ``Q4_1`` a float16 minimum m beside it::

    Q4_0   w = d (q - 8)     q 4 bits: the first 16 values in the low nibbles of 16 bytes, the others in the high ones
    Q4_1   w = d q + m       the same
    Q8_0   w = d q           q int8

``MatMulNBits`` knows w = d (q - z) with a whole z. ``Q4_0`` and ``Q8_0`` fit it as they are. The minimum of ``Q4_1``
is no multiple of d, so it stays beside the levels: y = d q x + m Σ x, the sum going over each block of x. Nothing is
rounded again, and ``dequantize`` gives the very floats that the file's own formula does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight

__all__ = ["BLOCK", "BLOCK_BYTES", "StoredBlocks", "unpack_blocks"]

BLOCK = 32
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


@dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """``weight`` on its grid, and what is added to all of a block: ``minimum`` float32 [rows, blocks], or nothing."""

    weight: BlockWeight
    minimum: npt.NDArray[np.float32] | None = None

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The float32 matrix [rows, width] that the blocks stand for."""
        values = self.weight.dequantize()
        if self.minimum is not None:
            values += np.repeat(self.minimum, self.weight.grid.block_size, axis=1)
        return values

    def take_rows(self, order: npt.NDArray[np.intp]) -> StoredBlocks:
        """The same with its rows in another order."""
        grid = self.weight.grid
        zero = None if grid.zero_point is None else grid.zero_point[order]
        moved = replace(grid, scale=grid.scale[order], zero_point=zero)
        return StoredBlocks(
            weight=BlockWeight(grid=moved, levels=self.weight.levels[order]),
            minimum=None if self.minimum is None else self.minimum[order],
        )


def unpack_blocks(data: npt.NDArray[Any], kind: str, shape: tuple[int, int]) -> StoredBlocks:
    """The blocks in ``data``, bytes of a matrix [rows, width] of ``kind``; ``width`` is a multiple of 32.

    Raises:
        ValueError: an unknown kind, or bytes that aren't as many as the shape takes.
    """
    rows, width = shape
    if kind not in BLOCK_BYTES:
        raise ValueError(f"blocks of kind {kind}, expected one of {', '.join(BLOCK_BYTES)}")
    size, blocks = BLOCK_BYTES[kind], width // BLOCK
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    if width % BLOCK or raw.size != rows * blocks * size:
        raise ValueError(f"{raw.size} bytes, expected {rows} x {width} values of {kind}")
    cut = raw.reshape(rows, blocks, size)
    scale = np.ascontiguousarray(cut[..., :2]).view("<f2")[..., 0].astype(np.float32)
    if kind == "Q8_0":
        grid = BlockGrid(bits=8, block_size=BLOCK, scale=scale, zero_point=None)
        shifted = np.bitwise_xor(cut[..., 2:], np.uint8(128))  # int8 plus 128, as uint8
        return StoredBlocks(weight=BlockWeight(grid=grid, levels=shifted.reshape(rows, width)))
    nibbles = cut[..., size - 16 :]
    levels = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(rows, width)
    if kind == "Q4_0":
        return StoredBlocks(
            weight=BlockWeight(grid=BlockGrid(bits=4, block_size=BLOCK, scale=scale, zero_point=None), levels=levels)
        )
    minimum = np.ascontiguousarray(cut[..., 2:4]).view("<f2")[..., 0].astype(np.float32)
    grid = BlockGrid(bits=4, block_size=BLOCK, scale=scale, zero_point=np.zeros((rows, blocks), np.uint8))
    return StoredBlocks(weight=BlockWeight(grid=grid, levels=levels), minimum=minimum)
