"""AWQ: scaling input channels so that the weights that count most are rounded most finely.

Lin et al. 2023, arXiv 2306.00978: X W = (X / s)(s W) exactly; with s_j = (size of X_j)^a, weights of large channels
grow, so that within a block they meet a finer grid. The strength a is searched between 0 and 1 by the error of
the layers' outputs under nearest rounding. Differences: the size of X_j is its root mean square, and output errors are
taken from the inputs' second moments H, tr(E H Eᵀ), so that neither needs the samples; and blocks have their scales
fitted by error in any case, which the paper searches as a clip afterwards.

Layouts: weights float32 [rows, width], H float64 [width, width], s float32 [width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.block_gptq import hessian_error
from edgeslim.algorithms.blockwise import round_blocks

__all__ = ["Scaling", "scaling_vector", "search_scaling"]

STRENGTHS = tuple(float(value) for value in np.round(np.linspace(0.1, 1, 10), 2))
LIMIT = 1e3


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """``scale`` [width] multiplies the weights' columns and divides the inputs; ``error`` and ``plain_error`` without.

    Both errors are squared and summed over all outputs.
    """

    scale: npt.NDArray[np.float32]
    strength: float
    error: float
    plain_error: float


def scaling_vector(size: npt.NDArray[Any], strength: float) -> npt.NDArray[np.float32]:
    """The vector s for channels of ``size`` [width]; geometric mean 1 over those that are used; others get 1."""
    size = np.asarray(size, np.float64)
    used = size > 0
    scale = np.ones_like(size)
    scale[used] = size[used] ** strength
    if used.any():
        scale[used] /= np.exp(np.log(scale[used]).mean())
    return np.asarray(np.clip(scale, 1 / LIMIT, LIMIT), np.float32)


def search_scaling(
    weights: Sequence[npt.NDArray[Any]],
    hessian: npt.NDArray[np.float64],
    size: npt.NDArray[Any],
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
) -> Scaling:
    """The strength with the least output error over all ``weights`` that share the inputs; 0 is none.

    ``size`` [width] is that of each channel of the inputs, and ``hessian`` what an error costs.
    """

    def lost(scale: npt.NDArray[np.float32]) -> float:
        total = 0.0
        for weight in weights:
            made = round_blocks(weight * scale, bits=bits, block_size=block_size, symmetric=symmetric)
            total += hessian_error(weight, made.dequantize() / scale, hessian)
        return total

    ones = np.ones(len(hessian), np.float32)
    best = Scaling(scale=ones, strength=0.0, error=lost(ones), plain_error=0.0)
    plain = best.error
    for strength in STRENGTHS:
        scale = scaling_vector(size, strength)
        error = lost(scale)
        if error < best.error:
            best = Scaling(scale=scale, strength=strength, error=error, plain_error=plain)
    return Scaling(scale=best.scale, strength=best.strength, error=best.error, plain_error=plain)
