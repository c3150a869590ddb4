"""Grids within a number of bytes, by hand and against all combinations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeslim.algorithms.block_budget import Choice, choose_within, convex_hull


def choice(size_bytes: int, loss: float) -> Choice:
    return Choice(bits=4, block_size=32, size_bytes=size_bytes, loss=loss)


def test_hull_by_hand() -> None:
    offers = [choice(10, 10), choice(20, 9), choice(30, 2), choice(40, 3), choice(50, 1)]
    assert [item.size_bytes for item in convex_hull(offers)] == [10, 30, 50]


def test_the_dearer_grid_goes_where_it_saves_most() -> None:
    first, second = [choice(10, 5), choice(20, 1)], [choice(10, 9), choice(20, 8)]
    assert [item.size_bytes for item in choose_within([first, second], 30)] == [20, 10]
    assert [item.size_bytes for item in choose_within([first, second], 40)] == [20, 20]
    assert [item.size_bytes for item in choose_within([first, second], 29)] == [10, 10]
    with pytest.raises(ValueError, match="19 bytes, expected at least 20"):
        choose_within([first, second], 19)


def test_near_the_best_of_all_combinations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        offers = [
            [choice(int(size), float(loss)) for size, loss in zip(rng.integers(5, 60, 4), rng.random(4), strict=True)]
            for _ in range(6)
        ]
        limit = int(sum(min(item.size_bytes for item in offer) for offer in offers) * 1.6)
        found = choose_within(offers, limit)
        assert sum(item.size_bytes for item in found) <= limit
        losses = [
            sum(item.loss for item in taken)
            for taken in itertools.product(*offers)
            if sum(item.size_bytes for item in taken) <= limit
        ]
        span = max(losses) - min(losses)
        assert sum(item.loss for item in found) <= min(losses) + 0.15 * span
