"""GPTQ against a plain reading of the method, and against rounding to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeslim.algorithms.gptq import RateTerm, factor_inverse, round_gptq


def correlated(seed: int, rows: int, size: int) -> np.ndarray:
    """Inputs with as much in common as a layer's activations have."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, size // 4)) @ rng.normal(size=(size // 4, size)) + 0.1 * rng.normal(size=(rows, size))


def output_error(inputs: np.ndarray, weight: np.ndarray, rounded: np.ndarray, scale: np.ndarray) -> float:
    return float(np.square(inputs @ (weight - rounded * scale)).sum())


def plain_gptq(weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One input channel after another: round it, then move the rest to where the output error is least.

    Each step solves the least squares of what is left by itself, so no factorization is shared with the code tested.
    """
    left = weight.astype(np.float64).copy()
    rounded = np.zeros_like(left)
    size = len(left)
    for row in range(size):
        rounded[row] = np.clip(np.rint(left[row] / scale), -127, 127)
        error = left[row] - rounded[row] * scale
        rest = slice(row + 1, size)
        if row + 1 < size:
            left[rest] += np.outer(np.linalg.solve(hessian[rest, rest], hessian[rest, row]), error)
    return rounded.astype(np.int8)


def test_zeros_of_a_pruned_weight_stay() -> None:
    rng = np.random.default_rng(9)
    inputs = correlated(9, 200, 48)
    weight = np.where(rng.random((48, 300)) < 0.5, 0, rng.normal(size=(48, 300))).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 7
    rounded = round_gptq(weight, factor_inverse(inputs.T @ inputs), scale)
    assert not rounded[weight == 0].any()
    nearest = np.clip(np.rint(weight / scale), -127, 127)
    assert output_error(inputs, weight, rounded, scale) < 0.8 * output_error(inputs, weight, nearest, scale)
    dense = np.where(weight == 0, 1e-9, weight)  # nobody pruned this one
    assert round_gptq(dense, factor_inverse(inputs.T @ inputs), scale)[weight == 0].any()


@pytest.mark.parametrize("size", [5, 32, 150])
def test_equals_solving_each_step(size: int) -> None:
    rng = np.random.default_rng(size)
    inputs = correlated(size, 4 * size, size)
    hessian = inputs.T @ inputs
    damped = hessian + 0.01 * np.trace(hessian) / size * np.eye(size)
    weight = rng.normal(size=(size, 7)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 7
    found = round_gptq(weight, factor_inverse(hessian), scale, low=-127, high=127)
    expected = plain_gptq(weight, damped, scale)
    assert np.mean(found != expected) < 0.01, "but for ties, each step has one answer"


def test_among_the_better_of_all_roundings() -> None:
    inputs = correlated(1, 64, 8)
    weight = np.random.default_rng(2).normal(size=(8, 1)).astype(np.float32)
    scale = np.array([0.4])
    floor = np.floor(weight / scale)
    choices = [
        output_error(inputs, weight, floor + np.array(bits).reshape(8, 1), scale)
        for bits in itertools.product((0, 1), repeat=8)
    ]
    nearest = output_error(inputs, weight, np.rint(weight / scale), scale)
    found = output_error(inputs, weight, round_gptq(weight, factor_inverse(inputs.T @ inputs), scale), scale)
    assert min(choices) <= found < 0.7 * nearest
    assert found < np.quantile(choices, 0.2)


def test_better_than_nearest_on_inputs_not_seen() -> None:
    both = correlated(3, 800, 128)
    seen, unseen = both[:400], both[400:]
    weight = np.random.default_rng(4).normal(size=(128, 64)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 127
    rounded = round_gptq(weight, factor_inverse(seen.T @ seen), scale)
    nearest = np.clip(np.rint(weight / scale), -127, 127)
    assert output_error(unseen, weight, rounded, scale) < 0.5 * output_error(unseen, weight, nearest, scale)


def test_survives_fewer_samples_than_channels_and_dead_channels() -> None:
    inputs = correlated(5, 10, 64)
    inputs[:, :5] = 0
    weight = np.random.default_rng(6).normal(size=(64, 9)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 127
    rounded = round_gptq(weight, factor_inverse(inputs.T @ inputs), scale)
    nearest = np.rint(weight / scale)
    assert np.array_equal(rounded[:5], nearest[:5]), "channels that are never used have nothing to make up for"
    assert output_error(inputs, weight, rounded, scale) <= output_error(inputs, weight, nearest, scale)
    assert np.array_equal(round_gptq(weight, factor_inverse(np.zeros((64, 64))), scale), nearest)


def test_the_factor_inverts_the_damped_hessian() -> None:
    inputs = correlated(7, 100, 20)
    hessian = inputs.T @ inputs
    upper = factor_inverse(hessian, damping=0.1)
    assert np.array_equal(upper, np.triu(upper))
    damped = hessian + 0.1 * np.trace(hessian) / 20 * np.eye(20)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(20), atol=1e-8)


def test_refuses_a_hessian_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        factor_inverse(np.full((3, 3), np.nan))


def test_the_rate_term_by_hand() -> None:
    """2 costs a bit more than 1: 1.6 goes to 1 where a bit is worth more than 0.6² - 0.4² = 0.2 squared steps."""
    bits = np.abs(np.arange(-127, 128.0))[None]
    weight = np.array([[1.6, 1.6, -1.6, 0.4, 127.4]])
    found = {}
    for worth in (0.19, 0.21):
        rate = RateTerm(bits=bits, classes=np.zeros(5, int), worth=np.full(5, worth))
        found[worth] = round_gptq(weight, np.eye(1), np.ones(5), rate=rate).tolist()
    assert found == {0.19: [[2, 2, -2, 0, 127]], 0.21: [[1, 1, -1, 0, 127]]}


def test_columns_have_codes_and_worths_of_their_own() -> None:
    bits = np.stack([np.zeros(255), np.abs(np.arange(-127, 128.0))])
    rate = RateTerm(bits=bits, classes=np.array([0, 1, 1]), worth=np.array([9.0, 9.0, 0.0]))
    weight = np.full((1, 3), 5.4)
    np.testing.assert_array_equal(round_gptq(weight, np.eye(1), np.ones(3), rate=rate), [[5, 4, 5]])


def test_columns_do_not_depend_on_each_other() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(40, 1100))
    inputs = rng.normal(size=(90, 40))
    upper = factor_inverse(inputs.T @ inputs)
    whole = round_gptq(weight, upper, np.full(1100, 0.1))
    some = round_gptq(weight[:, 1020:1030], upper, np.full(10, 0.1))
    np.testing.assert_array_equal(whole[:, 1020:1030], some)
