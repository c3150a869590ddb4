"""Optimal Brain Surgeon on one layer: weights are removed, and those that stay make up for it.

Removing w_j from a column of W costs w_j² / (2 [H⁻¹]_jj) of the output's squared error, and the best answer of the
others is -w_j [H⁻¹]_j / [H⁻¹]_jj, H = XᵀX (Hassibi & Stork 1993). SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774)
makes that affordable: rows are gone through in one order for all columns, so that all share the inverse of the Hessian
of the rows still to come, which the rows of its Cholesky factor hold.

Against the paper: the removal is chosen block by block as there, but in blocks of 32 rows (better than 128), and a
block's share of the sparsity comes from the scores of the whole matrix, so that important inputs keep more;
``output_weights`` (the mean squared gradient of each output) lets important outputs keep more, too. What is zero in the
beginning stays zero. Rows that were gone through before a removal can't answer to it; ``refit_kept`` then finds the
best values of all that stay, by conjugate gradients on all columns at once.

Layout: weight [in, out], Hessian [in, in], ``upper`` its ``gptq.factor_inverse``, output weights [out].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.pruning import keep_global, keep_n_of_m

__all__ = ["obs_scores", "prune_obs", "refit_kept"]

BLOCK = 32

Array = npt.NDArray[np.float64]


def obs_scores(weight: npt.NDArray[Any], upper: Array, output_weights: npt.NDArray[Any] | None = None) -> Array:
    """What the removal of each weight alone costs, in squared error of the output: w² / [H⁻¹]_jj, float64 [in, out]."""
    spread = np.square(upper).sum(axis=0)  # the diagonal of UᵀU
    scores: Array = np.square(np.asarray(weight, np.float64)) / spread[:, None]
    return scores if output_weights is None else np.asarray(scores * output_weights, np.float64)


def prune_obs(
    weight: npt.NDArray[Any],
    upper: Array,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    output_weights: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.float32]:
    """The pruned and updated weight, float32 [in, out].

    ``pattern`` (n, m) keeps n of each m rows of a column, and then ``sparsity`` doesn't count.

    Raises:
        ValueError: the number of rows isn't a multiple of m.
    """
    left = np.array(weight, np.float64)
    alive = left != 0
    rows = len(left)
    scale = np.ones(left.shape[1]) if output_weights is None else np.asarray(output_weights, np.float64)
    if pattern is not None and rows % pattern[1]:
        raise ValueError(f"{rows} inputs aren't a multiple of {pattern[1]}")
    wanted = None
    if pattern is None:
        # From all scores at once only how many weights go in each block is taken, not which: they change on the way.
        first = keep_global([obs_scores(left, upper, scale)], sparsity)[0]
        wanted = [int((~first[start : start + BLOCK]).sum()) for start in range(0, rows, BLOCK)]
    block = BLOCK if pattern is None else BLOCK - BLOCK % pattern[1] or pattern[1]
    for start in range(0, rows, block):
        end = min(start + block, rows)
        inner = np.square(np.diag(upper)[start:end])[:, None] / np.where(scale > 0, scale, 1e-30)
        keep = np.ones((end - start, left.shape[1]), np.bool_)
        if wanted is not None:
            scores = np.square(left[start:end] * alive[start:end]) / inner
            keep = keep_global([scores], wanted[start // BLOCK] / keep.size)[0]
        errors = np.empty(keep.shape)
        for row in range(start, end):
            if pattern is not None and (row - start) % pattern[1] == 0:
                group = slice(row - start, row - start + pattern[1])
                scores = np.square(left[row : row + pattern[1]] * alive[row : row + pattern[1]]) / inner[group]
                keep[group] = keep_n_of_m(scores, *pattern)
            values = np.where(keep[row - start] & alive[row], left[row], 0.0)
            error = (left[row] - values) / upper[row, row]
            left[row:end] -= np.outer(upper[row, row:end], error)
            left[row] = values
            errors[row - start] = error
        left[end:] -= upper[start:end, end:].T @ errors
    return left.astype(np.float32)


def refit_kept(
    weight: npt.NDArray[Any],
    pruned: npt.NDArray[Any],
    hessian: Array,
    *,
    damping: float = 0.01,
    steps: int = 32,
) -> npt.NDArray[np.float32]:
    """The values at the nonzero places of ``pruned`` that give nearest the outputs of ``weight``, float32 [in, out].

    Solves MHM v = MHw for each column w and its mask M by conjugate gradients, preconditioned by the diagonal, from
    ``pruned`` on. ``damping`` is added to the diagonal as a share of its mean, as in ``gptq.factor_inverse``.
    """
    wanted, found = np.asarray(weight, np.float64), np.array(pruned, np.float64)
    mask = found != 0
    diagonal = np.diag(hessian) + damping * float(np.trace(hessian)) / len(hessian)
    if not (diagonal > 0).all():
        return found.astype(np.float32)
    matrix = hessian.copy()
    np.fill_diagonal(matrix, diagonal)
    residual = mask * (matrix @ (wanted - found))
    first = np.square(residual).sum(axis=0)
    solved = residual / diagonal[:, None]
    direction, power = solved.copy(), (residual * solved).sum(axis=0)
    for _ in range(steps):
        product = mask * (matrix @ direction)
        curve = (direction * product).sum(axis=0)
        length = np.divide(power, curve, out=np.zeros_like(power), where=curve > 0)
        found += length * direction
        residual -= length * product
        if (np.square(residual).sum(axis=0) <= 1e-12 * first).all():
            break
        solved = residual / diagonal[:, None]
        renewed = (residual * solved).sum(axis=0)
        direction = solved + np.divide(renewed, power, out=np.zeros_like(power), where=power > 0) * direction
        power = renewed
    return found.astype(np.float32)
