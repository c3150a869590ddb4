"""GPTQ: rounding a weight matrix so that the layer's *output* changes least, not the weights.

Frantar et al. 2022, arXiv 2210.17323. Rows of the weight (one an input channel) are rounded one after another; the
error of each is spread over the rows that are still to come, along the inverse of the Hessian H = XᵀX of the layer's
inputs. Against the paper: the scales are given, so this is the rounding alone; and damping is raised until the Hessian
can be inverted, so that it survives calibration sets smaller than the layer. Where the integers are entropy-coded, a
rate term may prefer a cheaper value (rate-distortion optimized quantization, as in DeepCABAC: Wiedemann et al. 2019,
arXiv 1907.11900).

Layout: weight float32 [in, out], Hessian float64 [in, in], scale float32 [out].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.pruning import keep_zeros

__all__ = ["RateTerm", "factor_inverse", "round_gptq"]

BLOCK = 32
LEAF = 64
COLUMNS = 1024
DAMPING = 0.01
LEAST_DAMPING = 1e-8
MAX_DAMPING = 1e3


def factor_inverse(hessian: npt.NDArray[np.float64], damping: float = DAMPING) -> npt.NDArray[np.float64]:
    """The upper triangular U with UᵀU = (H + λI)⁻¹, where λ is ``damping`` times the mean of H's diagonal.

    Raises:
        ValueError: the Hessian isn't finite.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("a Hessian with NaN or infinite values")
    size = len(hessian)
    mean = float(np.trace(hessian)) / size
    if mean <= 0:
        return np.eye(size)
    # With J the reversal of order and J(H + λI)J = LLᵀ, the inverse is (JL⁻¹J)ᵀ(JL⁻¹J), and JL⁻¹J is upper triangular.
    reversed_order = hessian[::-1, ::-1]
    while True:
        try:
            factor = np.linalg.cholesky(reversed_order + damping * mean * np.eye(size))
            lower = np.asarray(factor, np.float64)
        except np.linalg.LinAlgError:
            if damping > MAX_DAMPING:
                raise
            damping = max(10 * damping, LEAST_DAMPING)
        else:
            return np.ascontiguousarray(_invert_lower(lower)[::-1, ::-1])


def _invert_lower(lower: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse of a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= LEAF:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _invert_lower(lower[:half, :half])
    inverse[half:, half:] = _invert_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


@dataclass(frozen=True, kw_only=True)
class RateTerm:
    """What a rounded value costs to store, so that rounding can weigh it against the error.

    ``bits`` [classes, high - low + 1] holds the length of each value's code from ``low`` up, ``classes`` [out] which of
    those rows a column takes; ``worth`` [out] is the squared error of the layer's output, in squared steps of the
    column's grid, that one bit saved may cost.
    """

    bits: npt.NDArray[np.float64]
    classes: npt.NDArray[np.intp]
    worth: npt.NDArray[np.float64]


def round_gptq(
    weight: npt.NDArray[Any],
    upper: npt.NDArray[np.float64],
    scale: npt.NDArray[Any],
    *,
    low: int = -127,
    high: int = 127,
    rate: RateTerm | None = None,
) -> npt.NDArray[np.int8]:
    """int8 [in, out] such that ``result * scale`` gives nearly the outputs of ``weight``.

    ``upper`` is ``factor_inverse`` of the inputs' Hessian; layers that share their inputs share it. With ``rate`` a
    value goes to its neighbour nearer to zero where the bits that this saves are worth the error that it adds; later
    rows make up for that error as for any other. Zeros of a weight that was pruned (``pruning.keep_zeros``) stay zero.
    """
    step = np.broadcast_to(np.asarray(scale, np.float64), weight.shape[1:])
    keep = keep_zeros(weight)
    rows, columns = weight.shape
    rounded = np.empty((rows, columns), np.int8)
    for first in range(0, columns, COLUMNS):  # columns don't depend on each other, and these fit a cache
        part = slice(first, first + COLUMNS)
        chosen = None if rate is None else replace(rate, classes=rate.classes[part], worth=rate.worth[part])
        alive = None if keep is None else keep[:, part]
        rounded[:, part] = _round_columns(np.asarray(weight[:, part]), upper, step[part], low, high, chosen, alive)
    return rounded


def _round_columns(
    weight: npt.NDArray[Any],
    upper: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    low: int,
    high: int,
    rate: RateTerm | None,
    keep: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.int8]:
    left = np.array(weight, np.float64)
    rounded = np.empty(left.shape, np.int8)
    size = len(left)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            exact = left[row] / step
            values = np.clip(np.rint(exact), low, high)
            if rate is not None:
                values = _cheapen(exact, values, rate, low, float(upper[row, row]))
            if keep is not None:
                values = np.where(keep[row], values, 0)
            rounded[row] = values
            error = (left[row] - values * step) / upper[row, row]
            left[row:end] -= np.outer(upper[row, row:end], error)
            errors[row - start] = error
        left[end:] -= upper[start:end, end:].T @ errors
    return rounded


def _cheapen(
    exact: npt.NDArray[np.float64], values: npt.NDArray[np.float64], rate: RateTerm, low: int, spread: float
) -> npt.NDArray[np.float64]:
    """``values``, or their neighbours nearer to zero where those are worth it; ``spread`` is U's diagonal here."""
    nearer = values - np.sign(values)
    index, nearer_index = values.astype(np.intp) - low, nearer.astype(np.intp) - low
    saved = rate.bits[rate.classes, index] - rate.bits[rate.classes, nearer_index]
    added = ((exact - nearer) ** 2 - (exact - values) ** 2) / spread**2
    return np.where(added < rate.worth * saved, nearer, values)
