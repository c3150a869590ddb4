"""A file's blocks of 4 bits with their levels as they are, and scales and minima of fewer significant bits.

A float16 scale has 11 significant bits, of which the last ones are noise that no code shortens: on SmolLM2 scales and
minima take 0.52 bits a weight once they are entropy-coded, and 0.36 with 6 significant bits. The error that this adds
is a tenth of what the levels' own rounding did. A minimum takes up what its scale's rounding does to the mean of the
block's weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.blockwise import BlockWeight, round_significant
from edgeslim.decoders.stored_blocks import StoredBlocks

__all__ = ["count_entropy_bits", "trim_scales"]


def trim_scales(blocks: StoredBlocks, significant_bits: int) -> StoredBlocks:
    """``blocks`` with scales and minima of ``significant_bits``."""
    grid, levels = blocks.weight.grid, blocks.weight.levels
    scale = round_significant(grid.scale, significant_bits)
    minimum = blocks.minimum
    if minimum is not None:
        mean = levels.reshape(len(levels), -1, grid.block_size).mean(axis=2)
        minimum = round_significant(minimum + mean * (grid.scale - scale), significant_bits)
    return StoredBlocks(weight=BlockWeight(grid=replace(grid, scale=scale), levels=levels), minimum=minimum)


def count_entropy_bits(blocks: StoredBlocks) -> float:
    """Order-0 entropies of levels, scales and minima, over all of them."""
    parts: list[npt.NDArray[Any] | None] = [blocks.weight.levels, blocks.weight.grid.scale, blocks.minimum]
    return sum(_entropy_bits(part) * part.size for part in parts if part is not None)


def _entropy_bits(values: npt.NDArray[Any]) -> float:
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / values.size
    return float(-(shares * np.log2(shares)).sum())
