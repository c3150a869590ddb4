"""Which matrix gets which grid, so that all together keep to a number of bytes and the model changes least.

The loss of a choice is the layer's output error times what an error there does to the model's output; losses add up,
since the errors of different matrices have nothing in common. Each matrix offers choices of (bytes, loss). Only those
on the lower convex hull can be best at any price of a byte; from the cheapest everywhere, the steps along the hulls are
taken in the order of loss saved a byte, for as long as they fit (Everett 1963's multipliers, taken greedily).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Choice", "choose_within", "convex_hull"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One grid for one matrix."""

    bits: int
    block_size: int
    size_bytes: int
    loss: float


def convex_hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are best at some price of a byte, cheapest first."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda item: (item.size_bytes, item.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def choose_within(offers: Sequence[Sequence[Choice]], max_bytes: int) -> list[Choice]:
    """One choice of each offer, together at most ``max_bytes``.

    Raises:
        ValueError: even the cheapest ones take more; its text says how many.
    """
    hulls = [convex_hull(choices) for choices in offers]
    taken = [0] * len(hulls)
    left = max_bytes - sum(hull[0].size_bytes for hull in hulls)
    if left < 0:
        raise ValueError(f"{max_bytes} bytes, expected at least {max_bytes - left}")
    steps = [
        (-_slope(hull[index], hull[index + 1]), number, index)
        for number, hull in enumerate(hulls)
        for index in range(len(hull) - 1)
    ]
    for _, number, index in sorted(steps, reverse=True):
        cost = hulls[number][index + 1].size_bytes - hulls[number][index].size_bytes
        if taken[number] == index and cost <= left:
            taken[number], left = index + 1, left - cost
    return [hull[index] for hull, index in zip(hulls, taken, strict=True)]


def _slope(cheaper: Choice, dearer: Choice) -> float:
    """Loss a byte between two choices: negative, and the lower the better."""
    return (dearer.loss - cheaper.loss) / max(dearer.size_bytes - cheaper.size_bytes, 1)
