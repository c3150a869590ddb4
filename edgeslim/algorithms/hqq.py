"""HQQ: grids fitted to the weights alone, by a norm that forgives outliers.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". Instead of the squared rounding
error, Σ|W - W_q|^p with p = 0.7 is lowered: an auxiliary variable takes the part of the error that looks like outliers
(a generalized soft threshold), and the grid is solved for on what is left, by turns, while the penalty β grows.

The paper holds the scale and solves for a zero point that isn't an integer. ONNX Runtime's fast kernels take integers
only, so here a symmetric block solves for its scale, and an affine one for its zero point as in the paper, which is
then rounded, and for its scale at that zero point. A block keeps the best grid it has seen by the norm, its first one
(``fit_blocks``) included. No data is needed.

Layout: weights float32 [rows, width].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight, fit_blocks, round_scale

__all__ = ["round_hqq", "shrink"]

NORM = 0.7
BETA = 10.0
GROWTH = 1.01
ITERATIONS = 20
FloatArray = npt.NDArray[np.float32]


def shrink(values: FloatArray, beta: float, norm: float = NORM) -> FloatArray:
    """The generalized soft threshold: sign(x) max(0, |x| - |x|^(p - 1) / β)."""
    size = np.abs(values)
    return np.asarray(np.sign(values) * np.maximum(size - np.power(size + 1e-8, norm - 1) / beta, 0), np.float32)


def round_hqq(weight: npt.NDArray[Any], *, bits: int, block_size: int, symmetric: bool = True) -> BlockWeight:
    """``weight`` on a grid with a small Σ|W - W_q|^0.7, at the nearest levels.

    Errors are shrunk in units of each block's step, so that β means the same in all of them.
    """
    first = fit_blocks(weight, bits=bits, block_size=block_size, symmetric=symmetric)
    scale = first.scale.copy()
    zero = None if first.zero_point is None else first.zero_point.copy()
    for block in range(scale.shape[1]):
        part = np.ascontiguousarray(weight[:, block * block_size : (block + 1) * block_size], np.float32)
        found = _fit(part, scale[:, block], np.asarray(first.zero_of(block), np.float32), first)
        scale[:, block] = found[0]
        if zero is not None:
            zero[:, block] = found[1]
    return replace(first, scale=scale, zero_point=zero).round(weight)


def _fit(values: FloatArray, scale: FloatArray, zero: FloatArray, grid: BlockGrid) -> tuple[FloatArray, FloatArray]:
    """The best scales and zero points [n] seen for blocks [n, size]."""
    zero = np.broadcast_to(zero, scale.shape).astype(np.float32)
    best_scale, best_zero = scale, zero
    least = _norm(values, scale, zero, grid.top)
    symmetric = grid.zero_point is None
    step, middle, beta = scale, zero, BETA
    for _ in range(ITERATIONS):
        levels = np.clip(np.rint(values / step[:, None] + middle[:, None]), 0, grid.top)
        centered = levels - middle[:, None]
        outliers = shrink(values / step[:, None] - centered, beta) * step[:, None]
        target = values - outliers
        if symmetric:
            step = _solve_scale(centered, target, step)
            tried_scale, tried_zero = round_scale(step), middle
        else:
            middle = np.mean(levels - target / step[:, None], axis=1)
            tried_zero = np.clip(np.rint(middle), 0, grid.top).astype(np.float32)
            tried_scale = round_scale(_solve_scale(levels - tried_zero[:, None], target, step))
        error = _norm(values, tried_scale, tried_zero, grid.top)
        better = error < least
        best_scale, best_zero = np.where(better, tried_scale, best_scale), np.where(better, tried_zero, best_zero)
        least = np.where(better, error, least)
        beta *= GROWTH
    return best_scale, best_zero


def _solve_scale(centered: FloatArray, target: FloatArray, fallback: FloatArray) -> FloatArray:
    """Least squares for each block's scale."""
    power = np.square(centered).sum(axis=1)
    return np.where(power > 0, (centered * target).sum(axis=1) / np.where(power > 0, power, 1), fallback)


def _norm(values: FloatArray, scale: FloatArray, zero: FloatArray, top: int) -> FloatArray:
    levels = np.clip(np.rint(values / scale[:, None]) + zero[:, None], 0, top) - zero[:, None]
    return np.asarray(np.power(np.abs(values - levels * scale[:, None]), NORM).sum(axis=1), np.float32)
