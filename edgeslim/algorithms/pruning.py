"""Which weights to remove: masks from importances.

An importance is a non-negative number a weight, of the weight's shape; the least important go first, and of equals the
first in memory order goes. |w| is magnitude pruning (Han et al. 2015, arXiv 1506.02626); w²/[H⁻¹]ⱼⱼ is Optimal Brain
Surgeon's (Hassibi & Stork 1993). N:M keeps n of each m neighbours along the *input* axis, the form of sparse tensor
cores (Mishra et al. 2021, arXiv 2104.08378). Pruning by a schedule, inside training, is
``edgeslim.training.gradual_pruning``.

Layout: matrices are [in, out], so N:M groups run along axis 0. Masks are True where a weight stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BadInputError

__all__ = ["keep_global", "keep_largest", "keep_n_of_m", "keep_zeros", "parse_pattern", "refuse_pruned", "sparsity_of"]

Mask = npt.NDArray[np.bool_]

MAX_GROUP = 64
PRUNED_SHARE = 0.2
"""From this share of exact zeros on a weight counts as pruned: trained dense weights have next to none."""


def keep_largest(importance: npt.NDArray[Any], sparsity: float) -> Mask:
    """Removes the ⌊sparsity·size⌋ least important weights of one tensor.

    Raises:
        ValueError: an importance is NaN, or ``sparsity`` isn't in [0, 1].
    """
    return keep_global([importance], sparsity)[0]


def keep_global(importances: Sequence[npt.NDArray[Any]], sparsity: float) -> list[Mask]:
    """Removes the ⌊sparsity·total⌋ least important weights of all tensors together; a mask for each.

    Raises:
        ValueError: an importance is NaN, or ``sparsity`` isn't in [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: {sparsity}, expected 0 to 1")
    flat = np.concatenate([np.asarray(values, np.float64).ravel() for values in importances])
    if np.isnan(flat).any():
        raise ValueError("an importance that is NaN")
    removed = int(np.floor(sparsity * flat.size + 1e-9))
    keep = np.ones(flat.size, np.bool_)
    if removed:
        bound = np.partition(flat, removed - 1)[removed - 1]
        keep[flat < bound] = False
        ties = np.flatnonzero(flat == bound)
        keep[ties[: removed - int((flat < bound).sum())]] = False
    ends = np.cumsum([values.size for values in importances])[:-1]
    return [part.reshape(values.shape) for part, values in zip(np.split(keep, ends), importances, strict=True)]


def keep_n_of_m(importance: npt.NDArray[Any], n: int, m: int) -> Mask:
    """Keeps the ``n`` most important of each ``m`` successive weights along axis 0.

    Raises:
        ValueError: axis 0 isn't a multiple of ``m``, or an importance is NaN.
    """
    size = importance.shape[0]
    if size % m:
        raise ValueError(f"{size} inputs aren't a multiple of {m}")
    if np.isnan(importance).any():
        raise ValueError("an importance that is NaN")
    groups = np.asarray(importance).reshape(size // m, m, -1)
    order = np.argsort(groups, axis=1, kind="stable")
    keep = np.ones(groups.shape, np.bool_)
    np.put_along_axis(keep, order[:, : m - n], values=False, axis=1)
    return keep.reshape(importance.shape)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """``"2:4"`` as (2, 4); ``None`` for ``"none"``.

    Raises:
        ValueError: anything else, or n not below m.
    """
    if pattern == "none":
        return None
    kept, colon, group = pattern.partition(":")
    if colon and kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group) <= MAX_GROUP:
        return int(kept), int(group)
    raise ValueError(f'pattern: "{pattern}", expected "none" or "N:M", N below M, as "2:4"')


def sparsity_of(values: npt.NDArray[Any]) -> float:
    """The share of exact zeros."""
    return 1.0 - np.count_nonzero(values) / values.size if values.size else 0.0


def keep_zeros(values: npt.NDArray[Any]) -> Mask | None:
    """The mask of a tensor that was pruned already; ``None`` where fewer than a fifth of its values are zero."""
    zeros = values.size - np.count_nonzero(values)
    return values != 0 if zeros and zeros >= PRUNED_SHARE * values.size else None


def refuse_pruned(values: npt.NDArray[Any], stage: str, name: str, keep: str) -> None:
    """Refuses to factorize what an earlier step pruned: factors of a matrix have none of its zeros.

    ``keep`` is the stage's setting for layers that it leaves alone.

    Raises:
        BadInputError: a fifth or more of ``values`` is zero.
    """
    if keep_zeros(values) is not None:
        raise BadInputError(
            f"recipe: {stage}",
            f"{name}, {sparsity_of(values):.0%} of it zero: its factors would have no zeros",
            expected="weights that nothing pruned",
            hint=f"{stage} first, then the pruning of the factors; or {keep} = [...] for the pruned layers",
        )
