"""Codebooks: k-means in one dimension, so that a tensor has few distinct values.

Lloyd's algorithm on sorted values, where a cluster is an interval and its mean a difference of prefix sums: a pass
costs k binary searches. It starts once from equally spaced values, which Han et al. (2015, arXiv 1510.00149) found best
since large weights are few and matter, and once from quantiles; the one with less squared error wins. ``importance``
(the Fisher information of each weight) makes it minimize the loss to second order instead (Choi et al. 2016, arXiv
1612.01543). With ``keep_zero`` zero is a value of the codebook by itself: exact zeros, pruned weights, stay zero, and
no other weight becomes zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Codebook", "fit_codebook"]

PASSES = 100


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """``values`` float32 [k], ``index`` uint8 of the tensor's shape: the tensor is ``values[index]``."""

    values: npt.NDArray[np.float32]
    index: npt.NDArray[np.uint8]

    def decode(self) -> npt.NDArray[np.float32]:
        """The tensor with its few values."""
        return self.values[self.index]


def fit_codebook(
    weight: npt.NDArray[Any], bits: int, *, importance: npt.NDArray[Any] | None = None, keep_zero: bool = False
) -> Codebook:
    """At most 2**bits values for all of ``weight``, zero among them (at index 0) if it is kept.

    Raises:
        ValueError: a weight or an importance isn't finite, or ``bits`` isn't 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: {bits}, expected 1 to 8")
    flat = np.asarray(weight, np.float64).ravel()
    mass = np.ones(flat.size) if importance is None else np.asarray(importance, np.float64).ravel()
    if not (np.isfinite(flat).all() and np.isfinite(mass).all()):
        raise ValueError("a NaN or infinite value")
    used = flat != 0 if keep_zero else np.ones(flat.size, np.bool_)
    first = int(keep_zero)
    index = np.zeros(flat.size, np.uint8)
    centers = np.empty(0)
    if used.any():
        centers, index[used] = _cluster(flat[used], mass[used], 2**bits - first)
        index[used] += first
    values = np.concatenate([np.zeros(first), centers]).astype(np.float32)
    return Codebook(values=values, index=index.reshape(np.shape(weight)))


def _cluster(
    values: npt.NDArray[np.float64], mass: npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct, np.searchsorted(distinct, values).astype(np.uint8)
    # A weight that doesn't matter still has to go somewhere: to what is nearest.
    weights = mass[order] + 1e-9 * max(float(mass.mean()), 1e-30)
    totals = np.concatenate([[0.0], np.cumsum(weights)])
    sums = np.concatenate([[0.0], np.cumsum(weights * ordered)])
    starts = (
        np.linspace(distinct[0], distinct[-1], count),
        np.interp((np.arange(count) + 0.5) / count * totals[-1], totals[1:], ordered),
    )
    found = [_lloyd(ordered, totals, sums, start) for start in starts]
    errors = [float(np.dot(weights, np.square(ordered - centers[_nearest(centers, ordered)]))) for centers in found]
    centers = found[int(np.argmin(errors))]
    return centers, _nearest(centers, values).astype(np.uint8)


def _lloyd(
    ordered: npt.NDArray[np.float64],
    totals: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    centers: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    last = None
    for _ in range(PASSES):
        bounds = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], bounds, [len(ordered)]])
        if last is not None and np.array_equal(edges, last):
            break
        last = edges
        held = edges[1:] > edges[:-1]
        amount, total = totals[edges[1:]] - totals[edges[:-1]], sums[edges[1:]] - sums[edges[:-1]]
        centers = np.sort(np.where(held, total / np.where(held, amount, 1.0), centers))
    return np.unique(centers)


def _nearest(centers: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
