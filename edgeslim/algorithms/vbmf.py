"""How many ranks of a matrix are more than noise: empirical variational Bayesian matrix factorization.

Nakajima et al. 2013 ("Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization", JMLR 14)
show that the variational posterior of low-rank structure under Gaussian noise has a closed form: a singular value
counts where it is above a threshold that hangs on the noise's variance alone. That variance minimizes a function of one
variable. Kim et al. 2016 (arXiv 1511.06530) choose the ranks of Tucker-2 so, without a setting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["vbmf_rank"]

Array = npt.NDArray[np.float64]

STEPS = 200


def vbmf_rank(matrix: npt.NDArray[Any]) -> int:
    """The number of singular values above the noise, from 0 to the shorter side.

    Raises:
        ValueError: a value isn't finite.
    """
    values = np.asarray(matrix, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a NaN or infinite value")
    rows, columns = sorted(values.shape)
    singular: Array = np.asarray(np.linalg.svd(values, compute_uv=False), np.float64)
    if not singular[0]:
        return 0
    ratio = rows / columns
    tau = 2.5129 * np.sqrt(ratio)
    bound = (1 + tau) * (1 + ratio / tau)
    squares = np.square(singular)
    first = max(min(int(np.ceil(rows / (1 + ratio))) - 1, rows - 1), 0)
    high = float(squares.sum()) / (rows * columns)
    tail = squares[first:]
    low = max(float(squares[first]) / (columns * bound), float(tail.mean()) / columns, 1e-12 * high)
    variances = np.geomspace(min(low, high), high, STEPS)
    noise = float(variances[int(np.argmin([_objective(squares, rows, columns, value) for value in variances]))])
    return int((squares > columns * noise * bound).sum())


def _objective(squares: Array, rows: int, columns: int, noise: float) -> float:
    """The free energy of the noise's variance, but for constants."""
    ratio = rows / columns
    tau = 2.5129 * np.sqrt(ratio)
    x = np.maximum(squares / (columns * noise), 1e-30)
    large = x > (1 + tau) * (1 + ratio / tau)
    signal, rest = x[large], x[~large]
    shifted = signal - (1 + ratio)
    found = 0.5 * (shifted + np.sqrt(np.square(shifted) - 4 * ratio))
    energy = np.sum(rest - np.log(rest)) + np.sum(signal - found)
    energy += np.sum(np.log((found + 1) / signal)) + ratio * np.sum(np.log(found / ratio + 1))
    return float(energy)
