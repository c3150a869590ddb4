"""GPTQ: rounding a weight matrix so that the layer's *output* changes least, not the weights.

Frantar et al. 2022, arXiv 2210.17323. Rows of the weight (one an input channel) are rounded one after another; the
error of each is spread over the rows that are still to come, along the inverse of the Hessian H = XᵀX of the layer's
inputs. Against the paper: the scales are given, so this is the rounding alone; and damping is raised until the Hessian
can be inverted, so that it survives calibration sets smaller than the layer.

Layout: weight float32 [in, out], Hessian float64 [in, in], scale float32 [out].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["factor_inverse", "round_gptq"]

BLOCK = 128
DAMPING = 0.01
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
            damping *= 10
        else:
            return np.ascontiguousarray(_invert_lower(lower)[::-1, ::-1])


def _invert_lower(lower: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse of a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= BLOCK // 2:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _invert_lower(lower[:half, :half])
    inverse[half:, half:] = _invert_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def round_gptq(
    weight: npt.NDArray[Any],
    upper: npt.NDArray[np.float64],
    scale: npt.NDArray[Any],
    *,
    low: int = -127,
    high: int = 127,
) -> npt.NDArray[np.int8]:
    """int8 [in, out] such that ``result * scale`` gives nearly the outputs of ``weight``.

    ``upper`` is ``factor_inverse`` of the inputs' Hessian; layers that share their inputs share it.
    """
    left = np.array(weight, np.float64)
    step = np.asarray(scale, np.float64)
    rounded = np.empty(left.shape, np.int8)
    size = len(left)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            values = np.clip(np.rint(left[row] / step), low, high)
            rounded[row] = values
            error = (left[row] - values * step) / upper[row, row]
            left[row:end] -= np.outer(upper[row, row:end], error)
            errors[row - start] = error
        left[end:] -= upper[start:end, end:].T @ errors
    return rounded
