"""Which heads, neurons or channels stay, and the weights that make up for the others.

That is one for graphs and torch modules. A *site* is a set of units that can go one by one, with the layers that take
them. Its order of removal comes from the importance asked for; how many go where, from the share that stays, layer by
layer or over all sites together. See ``edgeslim.algorithms.structured_pruning``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.pruning import keep_zeros
from edgeslim.algorithms.structured_pruning import (
    added_power,
    compensate,
    damped,
    keep_counts,
    removal_order,
    removal_prices,
)
from edgeslim.quantizing.moments import Moments

__all__ = ["Taker", "UnitOptions", "choose_kept", "fit_kept"]

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """Settings that choose units; see ``edgeslim.stages.prune_structured``."""

    importance: Literal["obs", "activation", "taylor", "fisher"] = "obs"
    scope: Literal["layer", "global"] = "layer"
    multiple: int = 16
    compensate: bool = True
    damping: float = 0.001
    gradient_samples: int = 128
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("multiple", "gradient_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: {self.damping}, expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Taker:
    """A layer that takes units: ``matrix`` [in, out], moments of its inputs, and ``units`` [count, size] of these.

    ``gradients`` [out, out] are the second moments of its outputs' gradients; ``scores`` [count] what ``taylor`` or
    ``fisher`` found. ``bias`` tells whether it has one.
    """

    matrix: npt.NDArray[np.float32]
    units: Indices
    moments: Moments | None = None
    gradients: Array | None = None
    scores: Array | None = None
    bias: bool = True


def choose_kept(
    sites: Sequence[Sequence[Taker]], keep: float, options: UnitOptions, *, multiple: int | None = None
) -> list[Indices]:
    """The units of each site that stay, sorted; each site is the layers that take its units."""
    step = options.multiple if multiple is None else multiple
    ordered = [_order(takers, keep, options, step) for takers in sites]
    totals = [len(takers[0].units) for takers in sites]
    counts = keep_counts(
        [costs for _, costs in ordered], totals, keep, multiple=step, everywhere=options.scope == "layer"
    )
    found = []
    for (order, _), total, count in zip(ordered, totals, counts, strict=True):
        stays = np.ones(total, np.bool_)
        stays[order[: total - count]] = False
        found.append(np.flatnonzero(stays).astype(np.int64))
    return found


def fit_kept(
    taker: Taker, kept: Indices, options: UnitOptions
) -> tuple[Indices, npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """The inputs that stay, sorted, their weights [len, out], and what is added to the bias.

    A matrix that was pruned already keeps its zeros: it isn't made to answer for what went.
    """
    columns = np.sort(taker.units[kept].ravel())
    plain = taker.matrix[columns]
    sparse = keep_zeros(taker.matrix) is not None
    if not options.compensate or taker.moments is None or len(columns) == len(taker.matrix) or sparse:
        return columns, plain, None
    second, mean = _around(taker)
    # Inputs that are no unit's (of a concatenation, say) stay as well, but then aren't cut: they take no part.
    inside = np.sort(taker.units.ravel())
    local = np.searchsorted(inside, columns)
    weight, shift = compensate(
        taker.matrix[inside],
        damped(second[np.ix_(inside, inside)], options.damping),
        local,
        mean=None if mean is None else mean[inside],
    )
    return columns, weight.astype(np.float32), None if mean is None else shift.astype(np.float32)


def _order(takers: Sequence[Taker], keep: float, options: UnitOptions, multiple: int) -> tuple[list[int], list[float]]:
    total = len(takers[0].units)
    if options.importance == "obs" and len(takers) == 1:
        one = takers[0]
        # Over all layers together one may lose far more than the share that is asked for.
        least = max(min(multiple, total), int(keep * total * (0.3 if options.scope == "global" else 1.0)) - multiple)
        size = one.units.shape[1]
        return removal_order(
            one.matrix,
            damped(_around(one)[0], options.damping),
            one.units,
            outputs=_factor(one.gradients),
            least=least,
            step=min(multiple, 16) if size == 1 else 1,
        )
    worth = np.zeros(total)
    for one in takers:
        if options.importance in ("taylor", "fisher"):
            assert one.scores is not None
            worth += one.scores
        elif options.importance == "activation":
            power = added_power(one.matrix, _around(one)[0], one.units)
            worth += power / max(float(power.sum()), 1e-30)
        else:
            moments = damped(_around(one)[0], options.damping)
            worth += removal_prices(one.matrix, moments, one.units, outputs=_factor(one.gradients))
    order = np.argsort(worth, kind="stable")
    return [int(unit) for unit in order], [float(value) for value in worth[order]]


def _around(taker: Taker) -> tuple[Array, Array | None]:
    """Mean second moments: around the mean where a bias can take the mean's part."""
    moments = taker.moments
    assert moments is not None
    if not taker.bias:
        return moments.second / moments.count, None
    return moments.centered() / moments.count, moments.mean


def _factor(gradients: Array | None) -> Array | None:
    if gradients is None:
        return None
    added = max(float(np.trace(gradients)) / len(gradients), 1e-30) * 1e-6
    return np.asarray(np.linalg.cholesky(gradients + added * np.eye(len(gradients))), np.float64)
