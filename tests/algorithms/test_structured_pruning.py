"""Structured pruning beside SciPy-free references: lstsq, brute force, and cases worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeslim.algorithms.structured_pruning import (
    added_power,
    compensate,
    damped,
    keep_counts,
    removal_order,
    removal_prices,
)

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(400, 6)) @ RANDOM.normal(size=(6, 8)) + 0.3 * RANDOM.normal(size=(400, 8)) + 1.5
WEIGHT = RANDOM.normal(size=(8, 5))


def test_what_stays_answers_as_least_squares_has_it() -> None:
    kept = np.array([0, 2, 3, 5, 6])
    moments = INPUTS.T @ INPUTS / len(INPUTS)
    found, shift = compensate(WEIGHT, moments, kept)
    wanted = np.linalg.lstsq(INPUTS[:, kept], INPUTS @ WEIGHT, rcond=None)[0]
    assert np.allclose(found, wanted, atol=1e-8)
    assert not shift.any()


def test_with_moments_around_the_mean_the_bias_answers_too() -> None:
    kept = np.array([1, 2, 4, 7])
    mean = INPUTS.mean(axis=0)
    centered = (INPUTS - mean).T @ (INPUTS - mean) / len(INPUTS)
    found, shift = compensate(WEIGHT, centered, kept, mean=mean)
    wide = np.column_stack([INPUTS[:, kept], np.ones(len(INPUTS))])
    wanted = np.linalg.lstsq(wide, INPUTS @ WEIGHT, rcond=None)[0]
    assert np.allclose(found, wanted[:-1], atol=1e-8)
    assert np.allclose(shift, wanted[-1], atol=1e-8)


def test_an_input_that_was_zero_changes_nothing() -> None:
    inputs = INPUTS.copy()
    inputs[:, 3] = 0.0
    moments = damped(inputs.T @ inputs / len(inputs), 1e-12)
    order, costs = removal_order(WEIGHT, moments, np.arange(8)[:, None], least=7)
    assert order == [3]
    assert costs[0] == pytest.approx(0, abs=np.square(WEIGHT[3]).sum() * moments[3, 3] * 1.01)
    kept = np.array([0, 1, 2, 4, 5, 6, 7])
    assert np.allclose(compensate(WEIGHT, moments, kept)[0], WEIGHT[kept])


@pytest.mark.parametrize("outputs", [None, np.tril(RANDOM.normal(size=(5, 5)))])
def test_a_price_is_the_squared_error_after_the_best_answer(outputs: np.ndarray | None) -> None:
    units = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    moments = INPUTS.T @ INPUTS / len(INPUTS)
    shaped = WEIGHT if outputs is None else WEIGHT @ outputs

    def error(gone: list[int]) -> float:
        kept = [index for index in range(8) if index not in gone]
        best = np.linalg.lstsq(INPUTS[:, kept], INPUTS @ shaped, rcond=None)[0]
        return float(np.square(INPUTS[:, kept] @ best - INPUTS @ shaped).sum() / len(INPUTS))

    prices = removal_prices(WEIGHT, moments, units, outputs=outputs)
    assert np.allclose(prices, [error(list(unit)) for unit in units])
    order, costs = removal_order(WEIGHT, moments, units, outputs=outputs, least=2)
    assert order[0] == int(np.argmin(prices))
    assert sum(costs) == pytest.approx(error([*units[order[0]], *units[order[1]]]))
    best = min(error([*units[a], *units[b]]) for a, b in itertools.combinations(range(4), 2))
    assert sum(costs) >= best - 1e-9


def test_units_taken_together_are_those_of_the_lowest_prices() -> None:
    moments = INPUTS.T @ INPUTS / len(INPUTS)
    units = np.arange(8)[:, None]
    order, costs = removal_order(WEIGHT, moments, units, least=1, step=3)
    prices = removal_prices(WEIGHT, moments, units)
    assert order[:3] == list(np.argsort(prices)[:3])
    assert len(order) == len(costs) == 7


def test_added_power_is_that_of_what_a_unit_adds() -> None:
    units = np.array([[0, 4], [1, 5]])
    wanted = [float(np.square(INPUTS[:, unit] @ WEIGHT[unit]).sum() / len(INPUTS)) for unit in units]
    assert np.allclose(added_power(WEIGHT, INPUTS.T @ INPUTS / len(INPUTS), units), wanted)


def test_counts_are_multiples() -> None:
    assert keep_counts([[], []], [96, 40], 0.5, multiple=16) == [48, 16]
    assert keep_counts([[]], [12], 0.5, multiple=16) == [12]
    assert keep_counts([[]], [12], 0.01, multiple=1) == [1]
    costs = [[1.0] * 60, [0.1] * 60]
    assert keep_counts(costs, [64, 64], 0.5, multiple=8, everywhere=False) == [56, 8]
    # What a layer has beyond its multiples goes first, and no layer goes as a whole.
    assert keep_counts([[0.0] * 11, [9.0] * 11], [12, 12], 0.6, multiple=8, everywhere=False) == [8, 8]
