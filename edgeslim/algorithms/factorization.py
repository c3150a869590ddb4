"""A matrix as a product of two thin ones, such that the layer's output (or the loss) changes least.

The plain SVD minimizes ‖W - AB‖. Two changes of basis make it minimize what matters:

- of the inputs: with S = XᵀX = LLᵀ, the SVD of LᵀW minimizes ‖XW - XAB‖ (SVD-LLM, Wang et al. 2024, arXiv 2403.07378);
- of the outputs: with the output gradients' second moment G = RRᵀ, the SVD of LᵀWR minimizes the change of the loss
  to second order, under the assumption that inputs and gradients are independent (as K-FAC has it). FWSVD (Hsu et al.
  2022, arXiv 2207.00112) weighs rows alone, by their Fisher information; that is a diagonal S without activations.

Ranks: each layer's squared singular values say what each rank is worth, and a Lagrangian divides the budget: a layer
takes the rank (or stays dense, at no error) that minimizes error + λ·parameters, and λ is bisected.

Layout: weight [in, out] = left [in, rank] @ right [rank, out].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Spectrum", "allocate_ranks", "ranks_for_error", "shrink_moment", "whitened_svd"]

Array = npt.NDArray[np.float64]

DAMPING = 1e-4


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A layer's decomposition: ``values`` fall; ``left`` [in, r] and ``right`` [r, out] are in the layer's basis."""

    values: Array
    left: Array
    right: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dense_size(self) -> int:
        """Parameters of the undivided matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def useful_rank(self) -> int:
        """The largest rank whose two factors have fewer parameters than the matrix."""
        return min(len(self.values), (self.dense_size - 1) // sum(self.shape))

    def errors(self) -> Array:
        """The squared error that each rank from 0 on leaves."""
        tails = np.cumsum(np.square(self.values)[::-1])[::-1]
        return np.append(tails, 0.0)

    def factors(self, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """``left`` and ``right`` of ``rank``, each scaled by the square root of the singular values."""
        root = np.sqrt(self.values[:rank])
        left, right = self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        # Both factors are quantized later: equal norms of each pair of columns and rows suit a scale a channel.
        norms = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        balance = np.sqrt(norms[1] / np.where(norms[0] > 0, norms[0], 1.0))
        balance[balance == 0] = 1.0
        return (left * balance).astype(np.float32), (right / balance[:, None]).astype(np.float32)


def whitened_svd(weight: npt.NDArray[Any], inputs: Array | None = None, outputs: Array | None = None) -> Spectrum:
    """The SVD of LᵀWR, taken back to the layer's basis.

    ``inputs`` is XᵀX [in, in], or a diagonal of it [in]; ``outputs`` the same of the output gradients [out, out] or
    [out]; ``None`` stands for the identity.

    Raises:
        ValueError: a moment isn't finite.
    """
    matrix = np.asarray(weight, np.float64)
    left, left_inverse = _root(inputs, matrix.shape[0])
    right, right_inverse = _root(outputs, matrix.shape[1])
    u, values, vt = np.linalg.svd(left.T @ matrix @ right, full_matrices=False)
    return Spectrum(values=values, left=left_inverse.T @ u, right=vt @ right_inverse)


def allocate_ranks(spectra: Sequence[Spectrum], keep: float, *, multiple: int = 1) -> list[int | None]:
    """Ranks such that all layers together keep at most the share ``keep`` of their parameters; ``None``: stays dense.

    Ranks are multiples of ``multiple``.

    Raises:
        ValueError: not even rank ``multiple`` everywhere fits.
    """
    budget = keep * sum(spectrum.dense_size for spectrum in spectra)
    options = [_options(spectrum, multiple) for spectrum in spectra]
    if sum(costs.min() for _, costs, _ in options) > budget:
        raise ValueError(f"rank {multiple} everywhere takes more than {keep} of the parameters")

    def choose(price: float) -> list[int]:
        return [int(np.argmin(errors + price * costs)) for _, costs, errors in options]

    def cost(chosen: Sequence[int]) -> float:
        return float(sum(costs[index] for (_, costs, _), index in zip(options, chosen, strict=True)))

    chosen = choose(0.0)
    if cost(chosen) > budget:
        low, high = 1e-30, 1e30
        for _ in range(200):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if cost(choose(middle)) > budget else (low, middle)
        chosen = _spend(options, choose(high), budget)
    return [ranks[index] for (ranks, _, _), index in zip(options, chosen, strict=True)]


def ranks_for_error(spectra: Sequence[Spectrum], max_error: float, *, multiple: int = 1) -> list[int | None]:
    """The fewest parameters such that all layers together lose at most ``max_error`` of their squared output."""
    powers = [float(np.square(spectrum.values).sum()) for spectrum in spectra]
    options = [_options(spectrum, multiple) for spectrum in spectra]
    budget = max_error * sum(powers)

    def choose(price: float) -> list[int]:
        return [int(np.argmin(costs + price * errors)) for _, costs, errors in options]

    low, high = 1e-30, 1e30
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        lost = sum(errors[index] for (_, _, errors), index in zip(options, choose(middle), strict=True))
        low, high = (middle, high) if lost > budget else (low, middle)
    return [ranks[index] for (ranks, _, _), index in zip(options, choose(high), strict=True)]


_Option = tuple[list[int | None], Array, Array]


def _options(spectrum: Spectrum, multiple: int) -> _Option:
    """What a layer may become: ranks (the last one dense), their parameters, and their squared errors."""
    ranks = list(range(multiple, spectrum.useful_rank + 1, multiple))
    errors = spectrum.errors()
    costs = [float(rank * sum(spectrum.shape)) for rank in ranks]
    return (
        [*ranks, None],
        np.array([*costs, float(spectrum.dense_size)]),
        np.array([*(errors[rank] for rank in ranks), 0.0]),
    )


def _spend(options: Sequence[_Option], chosen: list[int], budget: float) -> list[int]:
    """Spends what the Lagrangian left over, on what saves most error a parameter."""
    left = budget - sum(costs[index] for (_, costs, _), index in zip(options, chosen, strict=True))
    while True:
        best, best_gain, best_index = -1, 0.0, 0
        for layer, ((_, costs, errors), index) in enumerate(zip(options, chosen, strict=True)):
            for later in (index + 1, len(costs) - 1):
                if index < later < len(costs) and 0 < costs[later] - costs[index] <= left:
                    gain = (errors[index] - errors[later]) / (costs[later] - costs[index])
                    if gain > best_gain:
                        best, best_gain, best_index = layer, gain, later
        if best < 0:
            return chosen
        left -= options[best][1][best_index] - options[best][1][chosen[best]]
        chosen[best] = best_index


def shrink_moment(moment: Array, share: float) -> Array:
    """The second moment [n, n] drawn towards its mean diagonal, as Ledoit and Wolf (2004) do for covariances.

    A sample's moment has directions of almost no weight that are only directions it has not seen.
    """
    found = (1 - share) * moment
    found.flat[:: len(moment) + 1] += share * np.trace(moment) / len(moment)
    return found


def _root(moment: Array | None, size: int) -> tuple[Array, Array]:
    """L with LLᵀ = the damped moment, and its inverse."""
    if moment is None:
        return np.eye(size), np.eye(size)
    if not np.isfinite(moment).all():
        raise ValueError("a second moment with NaN or infinite values")
    full = np.diag(moment) if moment.ndim == 1 else moment
    values, vectors = np.linalg.eigh((full + full.T) / 2)
    floor = DAMPING * max(float(values.mean()), 1e-30)
    root = np.sqrt(np.maximum(values, 0.0) + floor)
    return vectors * root, (vectors / root).T
