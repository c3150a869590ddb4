"""GPTQ for weights in blocks, and what lowers the output error further once it has run.

Frantar et al. 2022, arXiv 2210.17323: columns are rounded one after another, the error of each spread over those that
are still to come along the inverse of the inputs' Hessian H = XᵀX. Here whole blocks go in the order of their columns'
mean H_jj, and the columns within a block by theirs: that is the paper's activation order, and yet a block stays a block
and its scale can be fitted to what the errors of earlier blocks have made of its weights, each column by its weight in
the error, 1 / U_jj².

Then, by turns: all scales of a row are solved for together (least squares under H), and each level is moved to where
the output error is least with all others held (coordinate descent; Behdin et al. 2023, arXiv 2309.01885). Neither can
make the error larger, so a result is never worse than GPTQ's. Zeros of a pruned weight stay zero through all of it.

Layouts: weights float [rows, width], Hessian float64 [width, width].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight, count_blocks, fit_blocks, round_scale
from edgeslim.algorithms.gptq import DAMPING, factor_inverse
from edgeslim.algorithms.pruning import keep_zeros

__all__ = ["damp", "hessian_error", "refine_blocks", "round_gptq_blocks"]

SYSTEM_NUMBERS = 1 << 23
"""Numbers of the systems that are solved at a time."""
TILE = 64
ROUNDS = 3
FloatArray = npt.NDArray[np.float32]


def damp(hessian: npt.NDArray[np.float64], damping: float = DAMPING) -> npt.NDArray[np.float64]:
    """H + λI, where λ is ``damping`` times the mean of the diagonal; an all-zero H becomes I."""
    mean = float(np.trace(hessian)) / len(hessian)
    return hessian + (damping * mean if mean > 0 else 1.0) * np.eye(len(hessian))


def hessian_error(weight: npt.NDArray[Any], rounded: npt.NDArray[Any], hessian: npt.NDArray[np.float64]) -> float:
    """The squared error of the layer's output, ||X (W - Q)||², summed over rows."""
    lost = np.asarray(weight, np.float64) - rounded
    return float(np.sum((lost @ hessian) * lost))


def round_gptq_blocks(
    weight: npt.NDArray[Any],
    hessian: npt.NDArray[np.float64],
    *,
    bits: int,
    block_size: int,
    symmetric: bool = True,
    damping: float = DAMPING,
    activation_order: bool = True,
    refine: bool = True,
) -> BlockWeight:
    """Levels such that the layer's outputs change least, and the grid that they are on.

    Raises:
        ValueError: the Hessian isn't finite.
    """
    rows, width = weight.shape
    blocks = count_blocks(width, block_size)
    order = _order_blocks(np.diag(hessian), block_size) if activation_order else np.arange(width)
    upper = factor_inverse(hessian[np.ix_(order, order)], damping)
    left = np.array(weight, np.float64).T[order]
    keep = keep_zeros(weight)
    alive = None if keep is None else keep.T[order]
    levels = np.empty((width, rows), np.uint8)
    scale = np.empty((rows, blocks), np.float32)
    zero = None if symmetric else np.empty((rows, blocks), np.uint8)
    start = 0
    while start < width:
        block = int(order[start]) // block_size
        end = start + min(block_size, width - block * block_size)
        cost = 1 / np.square(np.diag(upper)[start:end])
        grid = fit_blocks(left[start:end].T, bits=bits, block_size=block_size, symmetric=symmetric, importance=cost)
        scale[:, block] = grid.scale[:, 0]
        if zero is not None and grid.zero_point is not None:
            zero[:, block] = grid.zero_point[:, 0]
        _round_tiles(left, levels, upper, slice(start, end), grid, alive)
        start = end
    unordered = np.empty_like(levels)
    unordered[order] = levels
    whole = BlockGrid(bits=bits, block_size=block_size, scale=scale, zero_point=zero)
    made = BlockWeight(grid=whole, levels=np.ascontiguousarray(unordered.T))
    return refine_blocks(weight, damp(hessian, damping), made) if refine else made


def _order_blocks(diagonal: npt.NDArray[np.float64], block_size: int) -> npt.NDArray[np.intp]:
    """Columns, block by block: the heaviest block first, and in it the heaviest column."""
    width = len(diagonal)
    parts = [np.arange(start, min(start + block_size, width)) for start in range(0, width, block_size)]
    parts.sort(key=lambda part: -float(diagonal[part].mean()))
    return np.concatenate([part[np.argsort(-diagonal[part], kind="stable")] for part in parts])


def _round_tiles(
    left: npt.NDArray[np.float64],
    levels: npt.NDArray[np.uint8],
    upper: npt.NDArray[np.float64],
    block: slice,
    grid: BlockGrid,
    keep: npt.NDArray[np.bool_] | None,
) -> None:
    """Rounds the rows ``block`` of ``left`` [width, rows] to ``grid``, and moves the rest of ``left``."""
    step, zero = grid.scale[:, 0].astype(np.float64), np.asarray(grid.zero_of(0), np.float64)
    for start in range(block.start, block.stop, TILE):
        end = min(start + TILE, block.stop)
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            taken = np.clip(np.rint(left[row] / step) + zero, 0, grid.top)
            if keep is not None:
                taken = np.where(keep[row], taken, zero)
            levels[row] = taken
            error = (left[row] - (taken - zero) * step) / upper[row, row]
            left[row:end] -= np.outer(upper[row, row:end], error)
            errors[row - start] = error
        left[end:] -= upper[start:end, end:].T @ errors


def refine_blocks(
    weight: npt.NDArray[Any], hessian: npt.NDArray[np.float64], made: BlockWeight, rounds: int = ROUNDS
) -> BlockWeight:
    """Scales and levels moved by turns while that lowers ``hessian_error``; ``hessian`` has full rank."""
    best, least = made, hessian_error(weight, made.dequantize(), hessian)
    for _ in range(rounds):
        moved = _descend(weight, hessian, _refit_scales(weight, hessian, best))
        error = hessian_error(weight, moved.dequantize(), hessian)
        if error >= least * (1 - 1e-4):
            return moved if error < least else best
        best, least = moved, error
    return best


def _refit_scales(weight: npt.NDArray[Any], hessian: npt.NDArray[np.float64], made: BlockWeight) -> BlockWeight:
    """Least squares for all scales of each row: (CᵀHC) s = CᵀHw, with C the centred levels, block by block."""
    grid, centered = made.grid, made.centered().astype(np.float64)
    rows, width = centered.shape
    blocks = grid.scale.shape[1]
    starts = np.arange(0, width, grid.block_size)
    together = max(1, SYSTEM_NUMBERS // blocks**2)  # rows don't depend on each other, and a system takes blocks²
    solved = np.concatenate(
        [
            _solve_scales(weight[row : row + together], hessian, centered[row : row + together], starts)
            for row in range(0, rows, together)
        ]
    )
    empty = np.add.reduceat(np.square(centered), starts, axis=1) == 0
    scale = np.where(empty, grid.scale, round_scale(solved))
    refit = BlockWeight(grid=replace(grid, scale=scale.astype(np.float32)), levels=made.levels)
    lost, kept = (np.asarray(weight, np.float64) - item.dequantize() for item in (refit, made))
    worse = np.sum((lost @ hessian) * lost, axis=1) > np.sum((kept @ hessian) * kept, axis=1)
    return BlockWeight(
        grid=replace(grid, scale=np.where(worse[:, None], grid.scale, scale).astype(np.float32)), levels=made.levels
    )


def _solve_scales(
    weight: npt.NDArray[Any],
    hessian: npt.NDArray[np.float64],
    centered: npt.NDArray[np.float64],
    starts: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """The scales [rows, blocks] of some rows."""
    size = int(starts[1]) if len(starts) > 1 else centered.shape[1]
    system = np.empty((len(centered), len(starts), len(starts)))
    for block in range(len(starts)):
        part = slice(block * size, (block + 1) * size)
        system[:, :, block] = np.add.reduceat((centered[:, part] @ hessian[part]) * centered, starts, axis=1)
    wanted = np.add.reduceat((np.asarray(weight, np.float64) @ hessian) * centered, starts, axis=1)
    diagonal = np.einsum("rbb->rb", system)
    diagonal += 1e-9 * diagonal.max(axis=1, keepdims=True) + 1e-30
    return np.asarray(np.linalg.solve(system, wanted[..., None])[..., 0])


def _descend(weight: npt.NDArray[Any], hessian: npt.NDArray[np.float64], made: BlockWeight) -> BlockWeight:
    """One pass over all levels: each to the nearest of where the error is least, the others held."""
    grid, keep = made.grid, keep_zeros(weight)
    values = np.ascontiguousarray(made.dequantize().T, np.float64)
    slope = hessian @ (np.asarray(weight, np.float64).T - values)
    levels = np.ascontiguousarray(made.levels.T)
    width = len(values)
    tile = min(TILE, grid.block_size)
    for start in range(0, width, tile):
        end = min(start + tile, width)
        block = start // grid.block_size
        step, zero = grid.scale[:, block].astype(np.float64), np.asarray(grid.zero_of(block), np.float64)
        moves = np.empty((end - start, values.shape[1]))
        for column in range(start, end):
            best = values[column] + slope[column] / hessian[column, column]
            taken = np.clip(np.rint(best / step) + zero, 0, grid.top)
            if keep is not None:
                taken = np.where(keep[:, column], taken, zero)
            move = (taken - zero) * step - values[column]
            levels[column] = taken
            slope[start:end] -= np.outer(hessian[start:end, column], move)
            moves[column - start] = move
        slope[:start] -= hessian[:start, start:end] @ moves
        slope[end:] -= hessian[end:, start:end] @ moves
    return BlockWeight(grid=grid, levels=np.ascontiguousarray(levels.T))
