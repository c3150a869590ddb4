"""Weights in blocks of few bits: how they are fitted, rounded and packed.

A row of a matrix is cut into blocks of ``block_size`` neighbours, each with a scale of its own and, where it is affine,
a zero point: w = (level - zero) * scale, levels 0 to 2**bits - 1. A symmetric block has its zero in the middle, and one
level more on one side than on the other; the scale's *sign* says which side that is, so that a block's largest value
can take the outermost level.

Scales are fitted by squared error, weighted by the columns' importance where that is known: a grid of clipped ranges,
then least squares on the levels that the best of them gives. They are kept to 8 significant bits (bfloat16's): that
adds a millionth of the weights' energy to the error, and the container then stores them in a third of their bytes.

Layouts: weights float32 [rows, width], a row being an output channel of a MatMul or an entry of a table, so that both
can share one matrix; levels uint8 [rows, width]; scales float32 and zero points uint8 [rows, blocks]. Packed as the
runtime's kernels want it: uint8 [rows, blocks, block_size * bits / 8], the earlier of two levels in the low nibble; the
last block is filled up with zero points, and so is a row's last byte of zero points, with the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK_SIZES",
    "BlockGrid",
    "BlockWeight",
    "count_blocks",
    "fit_blocks",
    "round_blocks",
    "round_scale",
    "round_significant",
    "stored_bytes",
]

BLOCK_SIZES = (16, 32, 64, 128, 256)
CLIPS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.64)
CHUNK_ELEMENTS = 1 << 21
SIGNIFICANT_BITS = 8
REFITS = 2

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BlockGrid:
    """The levels that values may take: float32 ``scale``, uint8 ``zero_point`` or ``None``, both [rows, blocks]."""

    bits: int
    block_size: int
    scale: FloatArray
    zero_point: npt.NDArray[np.uint8] | None

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    def zero_of(self, block: int) -> npt.NDArray[np.float32] | np.float32:
        """Zero points of one block of all rows, or the one that all share."""
        return np.float32(self.middle) if self.zero_point is None else self.zero_point[:, block].astype(np.float32)

    def round(self, weight: npt.NDArray[Any]) -> BlockWeight:
        """``weight`` [rows, width] on the nearest levels."""
        levels = np.empty(weight.shape, np.uint8)
        for block in range(self.scale.shape[1]):
            part = slice(block * self.block_size, (block + 1) * self.block_size)
            zero = np.atleast_1d(self.zero_of(block))[:, None]
            nearest = np.rint(weight[:, part] / self.scale[:, block, None]) + zero
            levels[:, part] = np.clip(nearest, 0, self.top)
        return BlockWeight(grid=self, levels=levels)


@dataclass(frozen=True, kw_only=True)
class BlockWeight:
    """A matrix on its grid: ``levels`` uint8 [rows, width]."""

    grid: BlockGrid
    levels: npt.NDArray[np.uint8]

    def centered(self) -> FloatArray:
        """Levels minus their zero points, float32 [rows, width]."""
        width, size = self.levels.shape[1], self.grid.block_size
        if self.grid.zero_point is None:
            return self.levels.astype(np.float32) - np.float32(self.grid.middle)
        return self.levels.astype(np.float32) - np.repeat(self.grid.zero_point, size, axis=1)[:, :width]

    def dequantize(self) -> FloatArray:
        """The float32 matrix [rows, width] that the levels stand for."""
        width = self.levels.shape[1]
        return self.centered() * np.repeat(self.grid.scale, self.grid.block_size, axis=1)[:, :width]

    def packed(self) -> npt.NDArray[np.uint8]:
        """uint8 [rows, blocks, block_size * bits / 8]."""
        rows, width = self.levels.shape
        size, blocks = self.grid.block_size, self.grid.scale.shape[1]
        filled = np.empty((rows, blocks, size), np.uint8)
        filled[...] = self.grid.middle if self.grid.zero_point is None else self.grid.zero_point[..., None]
        filled.reshape(rows, -1)[:, :width] = self.levels
        return _pack(filled) if self.grid.bits == 4 else filled

    def packed_zero_points(self) -> npt.NDArray[np.uint8] | None:
        """uint8 [rows, ceil(blocks * bits / 8)], or ``None`` where they are all in the middle."""
        zero = self.grid.zero_point
        if zero is None or self.grid.bits == 8:
            return zero
        return _pack(np.pad(zero, ((0, 0), (0, zero.shape[1] % 2)), constant_values=self.grid.middle))


def _pack(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(levels[..., ::2] | levels[..., 1::2] << 4)


def count_blocks(width: int, block_size: int) -> int:
    """The blocks of a row."""
    return -(-width // block_size)


def stored_bytes(rows: int, width: int, *, bits: int, block_size: int, symmetric: bool, scale_bytes: int = 4) -> int:
    """What a packed matrix takes in memory: levels, scales and zero points."""
    blocks = count_blocks(width, block_size)
    zeros = 0 if symmetric else -(-blocks * bits // 8)
    return rows * (blocks * (block_size * bits // 8 + scale_bytes) + zeros)


def round_significant(values: npt.NDArray[Any], bits: int) -> FloatArray:
    """``values`` to the nearest float32 of ``bits`` significant bits."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits), np.float32)


def round_scale(scale: npt.NDArray[Any]) -> FloatArray:
    """``scale`` to 8 significant bits; 0 and what isn't finite becomes 1."""
    kept = round_significant(scale, SIGNIFICANT_BITS)
    usable = np.isfinite(kept) & (np.abs(kept) > np.finfo(np.float32).tiny)
    return np.where(usable, kept, np.float32(1)).astype(np.float32)


def fit_blocks(
    weight: npt.NDArray[Any],
    *,
    bits: int,
    block_size: int,
    symmetric: bool = True,
    importance: npt.NDArray[Any] | None = None,
    search: bool = True,
) -> BlockGrid:
    """The grid with the least squared rounding error, columns weighted by ``importance`` [width], all positive.

    Without ``search`` the range is the whole of each block's.
    """
    rows, width = weight.shape
    blocks = count_blocks(width, block_size)
    scale = np.empty((rows, blocks), np.float32)
    zero = None if symmetric else np.empty((rows, blocks), np.uint8)
    weights = np.ones(width, np.float32) if importance is None else np.asarray(importance, np.float32)
    for block in range(blocks):
        part = slice(block * block_size, min((block + 1) * block_size, width))
        cost = weights[part] / max(float(weights[part].max()), float(np.finfo(np.float32).tiny))
        step = max(1, CHUNK_ELEMENTS // block_size)
        for start in range(0, rows, step):
            chosen = slice(start, start + step)
            values = np.ascontiguousarray(weight[chosen, part], np.float32)
            fit = _fit_symmetric if symmetric else _fit_affine
            scales, zeros = fit(values, cost, bits, CLIPS if search else CLIPS[:1])
            scale[chosen, block] = scales
            if zero is not None:
                zero[chosen, block] = zeros
    return BlockGrid(bits=bits, block_size=block_size, scale=scale, zero_point=zero)


def round_blocks(
    weight: npt.NDArray[Any],
    *,
    bits: int,
    block_size: int,
    symmetric: bool = True,
    importance: npt.NDArray[Any] | None = None,
    search: bool = True,
) -> BlockWeight:
    """``fit_blocks``, and ``weight`` rounded to the nearest levels (RTN)."""
    grid = fit_blocks(
        weight, bits=bits, block_size=block_size, symmetric=symmetric, importance=importance, search=search
    )
    return grid.round(weight)


def _fit_symmetric(
    values: FloatArray, cost: FloatArray, bits: int, clips: tuple[float, ...]
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Scales [n] for blocks [n, size]."""
    half = 1 << (bits - 1)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]
    candidates = [-extreme * np.float32(clip / half) for clip in clips]
    if len(clips) > 1:
        candidates += [extreme * np.float32(clip / (half - 1)) for clip in clips[: len(clips) // 2]]
    best = round_scale(candidates[0])
    error, _ = _symmetric_error(values, cost, best, half)
    for scale in map(round_scale, candidates[1:]):
        found, _ = _symmetric_error(values, cost, scale, half)
        best, error = np.where(found < error, scale, best), np.minimum(found, error)
    for _ in range(REFITS if len(clips) > 1 else 0):
        _, levels = _symmetric_error(values, cost, best, half)
        refit = round_scale(_least_squares(values, cost, levels, best))
        found, _ = _symmetric_error(values, cost, refit, half)
        best, error = np.where(found < error, refit, best), np.minimum(found, error)
    return best, np.full(len(values), half, np.uint8)


def _symmetric_error(
    values: FloatArray, cost: FloatArray, scale: FloatArray, half: int
) -> tuple[FloatArray, FloatArray]:
    levels = np.clip(np.rint(values / scale[:, None]), -half, half - 1)
    return np.square(levels * scale[:, None] - values) @ cost, levels


def _least_squares(values: FloatArray, cost: FloatArray, levels: FloatArray, fallback: FloatArray) -> FloatArray:
    power = np.square(levels) @ cost
    return np.where(power > 0, (values * levels) @ cost / np.where(power > 0, power, 1), fallback).astype(np.float32)


def _fit_affine(
    values: FloatArray, cost: FloatArray, bits: int, clips: tuple[float, ...]
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Scales and zero points [n] for blocks [n, size]; zero is always exact."""
    top = (1 << bits) - 1
    high, low = np.maximum(values.max(axis=1), 0), np.minimum(values.min(axis=1), 0)
    best_error = np.full(len(values), np.inf, np.float32)
    best_scale, best_zero = np.ones(len(values), np.float32), np.zeros(len(values), np.float32)
    for clip in clips:
        scale = round_scale((high - low) * np.float32(clip / top))
        first = np.clip(np.rint(-low * np.float32(clip) / scale), 0, top)
        for shift in (0, -1, 1) if len(clips) > 1 else (0,):
            zero = np.clip(first + shift, 0, top)
            error, levels = _affine_error(values, cost, scale, zero, top)
            better = error < best_error
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
            best_error = np.where(better, error, best_error)
    for _ in range(REFITS if len(clips) > 1 else 0):
        _, levels = _affine_error(values, cost, best_scale, best_zero, top)
        refit = round_scale(_least_squares(values, cost, levels, best_scale))
        error, _ = _affine_error(values, cost, refit, best_zero, top)
        best_scale, best_error = np.where(error < best_error, refit, best_scale), np.minimum(error, best_error)
    return best_scale, best_zero.astype(np.uint8)


def _affine_error(
    values: FloatArray, cost: FloatArray, scale: FloatArray, zero: FloatArray, top: int
) -> tuple[FloatArray, FloatArray]:
    """Weighted squared error [n], and the levels less their zero points."""
    centered = np.clip(np.rint(values / scale[:, None]), -zero[:, None], top - zero[:, None])
    return np.square(centered * scale[:, None] - values) @ cost, centered
