"""Which units of a layer's input to remove, and how the others make up for it.

A unit is a set of inputs that go together: a neuron is one, an attention head as many as it has channels, a channel of
a picture as many as the next kernel has places. Removing unit u of a layer y = xᵀW + b and letting the others answer
costs tr(W_uᵀ ([H⁻¹]_uu)⁻¹ W_u) of the squared error of y, H the second moments of x: Optimal Brain Surgeon (Hassibi &
Stork 1993) for blocks, as in "Optimal Brain Compression" (Frantar & Alistarh 2022, arXiv 2208.11580). ``removal_order``
takes the cheapest units, updates the inverse and the weights, and goes on; the costs of all layers together, each in
terms of the answer's error, say how many go where (``keep_counts``). ``outputs`` is the Cholesky factor of what an
error of y costs, so that the squared error of y·outputs is what counts.

Unlike the paper's, the last step is one exact least-squares solution for all that went: W' = W_k + H_kk⁻¹ H_kr W_r.
With moments around the mean, the bias takes the mean of what went: b' = b + (m_r - H_rk H_kk⁻¹ m_k)ᵀ W_r.

Layout: weight [in, out], moments [in, in], units [count, size] of indices of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["added_power", "compensate", "damped", "keep_counts", "removal_order", "removal_prices", "rest_of"]

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def damped(moments: Array, damping: float) -> Array:
    """``moments`` with ``damping`` of the diagonal's mean added to it: what is asked of inverses.

    An input that is always zero has next to nothing there, so that it is the cheapest of all to remove.
    """
    diagonal = np.diag(moments)
    added = moments + np.eye(len(moments)) * damping * float(diagonal.mean())
    dead = diagonal == 0
    added[dead, dead] = max(float(diagonal.mean()) * 1e-12, 1e-30)
    return added


def removal_order(
    weight: npt.NDArray[Any],
    moments: Array,
    units: Indices,
    *,
    outputs: Array | None = None,
    least: int = 1,
    step: int = 1,
) -> tuple[list[int], list[float]]:
    """The units from the cheapest on, and what the removal of each costs after those before it.

    ``step`` units are taken at a time, by prices before any of them is gone. At least ``least`` units are left over.
    ``moments`` must be invertible (``damped``).
    """
    left = np.array(weight, np.float64)
    if outputs is not None:
        left = left @ outputs
    inverse = np.asarray(np.linalg.inv(moments), np.float64)
    alive = np.ones(len(units), np.bool_)
    order: list[int] = []
    costs: list[float] = []
    while (room := int(alive.sum()) - least) > 0:
        prices = _prices(left, inverse, units, alive)
        chosen = np.argsort(np.where(alive, prices, np.inf), kind="stable")[: min(step, room)]
        gone = units[chosen].ravel()
        answer = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
        left -= answer.T @ left[gone]
        inverse -= inverse[:, gone] @ answer
        left[gone], inverse[gone], inverse[:, gone] = 0.0, 0.0, 0.0
        alive[chosen] = False
        order += [int(unit) for unit in chosen]
        costs += [float(prices[unit]) for unit in chosen]
    return order, costs


def removal_prices(weight: npt.NDArray[Any], moments: Array, units: Indices, *, outputs: Array | None = None) -> Array:
    """What the removal of each unit alone costs, [count]."""
    wide = np.asarray(weight, np.float64)
    wide = wide if outputs is None else wide @ outputs
    return _prices(wide, np.asarray(np.linalg.inv(moments), np.float64), units, np.ones(len(units), np.bool_))


def added_power(weight: npt.NDArray[Any], moments: Array, units: Indices, *, outputs: Array | None = None) -> Array:
    """The mean square of what each unit adds to the output, tr(W_uᵀ H_uu W_u), [count]."""
    rows = np.asarray(weight, np.float64)
    rows = (rows if outputs is None else rows @ outputs)[units]
    blocks = moments[units[:, :, None], units[:, None, :]]
    return np.asarray((rows * (blocks @ rows)).sum(axis=(1, 2)), np.float64)


def keep_counts(
    costs: Sequence[Sequence[float]], totals: Sequence[int], keep: float, *, multiple: int = 1, everywhere: bool = True
) -> list[int]:
    """How many of its ``totals`` units each layer keeps, a multiple of ``multiple`` (of all, where it has fewer).

    ``costs[i]`` are those of the successive removals of layer i. With ``everywhere`` each layer keeps the share
    ``keep``, else all together do: steps of ``multiple`` units go where they cost least, and each layer keeps a step.
    """
    if everywhere:
        return [_rounded(keep * total, total, multiple) for total in totals]
    # A layer that isn't a multiple loses its remainder first.
    kept = [total - (total % multiple if total > multiple else 0) for total in totals]
    wanted = keep * sum(totals)
    while sum(kept) > wanted:
        best, price = None, np.inf
        for layer, count in enumerate(kept):
            start = totals[layer] - count
            if count <= multiple or start + multiple > len(costs[layer]):
                continue
            step = float(np.sum(costs[layer][start : start + multiple]))
            if step < price:
                best, price = layer, step
        if best is None:
            break
        kept[best] -= multiple
    return kept


def compensate(
    weight: npt.NDArray[Any],
    moments: Array,
    kept: Indices,
    *,
    mean: Array | None = None,
) -> tuple[Array, Array]:
    """The weight [kept, out] that answers for the inputs not in ``kept``, and what is to be added to the bias, [out].

    ``moments`` are around the mean where ``mean`` is given; without it nothing is added to the bias.
    """
    wide = np.asarray(weight, np.float64)
    gone = rest_of(kept, len(wide))
    answer = np.linalg.solve(moments[np.ix_(kept, kept)], moments[np.ix_(kept, gone)])
    new = wide[kept] + answer @ wide[gone]
    if mean is None:
        return new, np.zeros(wide.shape[1])
    return new, (mean[gone] - answer.T @ mean[kept]) @ wide[gone]


def rest_of(kept: Indices, total: int) -> Indices:
    """The indices below ``total`` that aren't in ``kept``, in order."""
    mask = np.ones(total, np.bool_)
    mask[kept] = False
    return np.flatnonzero(mask).astype(np.int64)


def _rounded(wanted: float, total: int, multiple: int) -> int:
    """The multiple next to ``wanted``, at least one and at most ``total``; all where ``total`` is no more than one."""
    if total <= multiple:
        return total
    return int(min(max(round(wanted / multiple), 1) * multiple, total - total % multiple))


def _prices(left: Array, inverse: Array, units: Indices, alive: npt.NDArray[np.bool_]) -> Array:
    rows = left[units]
    if units.shape[1] == 1:
        spread = np.diag(inverse)[units[:, 0]]
        return np.asarray(np.square(rows[:, 0]).sum(axis=1) / np.where(alive, spread, 1.0), np.float64)
    blocks = inverse[units[:, :, None], units[:, None, :]]
    blocks[~alive] = np.eye(units.shape[1])
    return np.asarray((rows * np.linalg.solve(blocks, rows)).sum(axis=(1, 2)), np.float64)
