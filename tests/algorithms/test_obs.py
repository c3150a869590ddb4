"""Optimal Brain Surgeon by hand, and against least squares on the support that it chose."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.obs import obs_scores, prune_obs, refit_kept

TINY = 1e-12


@pytest.fixture(scope="module")
def layer() -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs of different sizes, and a weight [24, 10]."""
    random = np.random.default_rng(2)
    inputs = random.normal(size=(200, 24)) + 0.5 * random.normal(size=(200, 4)) @ random.normal(size=(4, 24))
    inputs *= random.permutation(np.geomspace(0.2, 3, 24))
    return inputs, random.normal(size=(24, 10))


def output_error(inputs: np.ndarray, weight: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(inputs @ (weight - other)).sum() / np.square(inputs @ weight).sum())


def best_on_support(inputs: np.ndarray, weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    found = np.zeros(weight.shape)
    for column in range(weight.shape[1]):
        kept = mask[:, column]
        found[kept, column] = np.linalg.lstsq(inputs[:, kept], inputs @ weight[:, column], rcond=None)[0]
    return found


def test_two_weights_by_hand() -> None:
    # H = [[2, 1], [1, 2]]: its inverse has 2/3 on the diagonal, so 1 goes before 3, and 3 becomes 3 + 1 * 1/2.
    upper = factor_inverse(np.array([[2.0, 1.0], [1.0, 2.0]]), TINY)
    assert obs_scores(np.array([[1.0], [3.0]]), upper) == pytest.approx(np.array([[1.5], [13.5]]))
    assert prune_obs(np.array([[1.0], [3.0]]), upper, sparsity=0.5) == pytest.approx(np.array([[0.0], [3.5]]))


def test_without_correlation_it_is_magnitude_pruning() -> None:
    weight = np.random.default_rng(3).normal(size=(16, 4))
    pruned = prune_obs(weight, np.eye(16), sparsity=0.5)
    mask = np.abs(weight) > np.sort(np.abs(weight).ravel())[31]
    assert pruned == pytest.approx(np.where(mask, weight, 0))


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_between_magnitude_and_least_squares(
    layer: tuple[np.ndarray, np.ndarray], pattern: tuple[int, int] | None
) -> None:
    inputs, weight = layer
    hessian = inputs.T @ inputs
    pruned = prune_obs(weight, factor_inverse(hessian, 1e-9), sparsity=0.5, pattern=pattern)
    mask = pruned != 0
    assert mask.sum() == weight.size // 2
    if pattern:
        assert (mask.reshape(6, 4, 10).sum(axis=1) == 2).all()
    best = best_on_support(inputs, weight, mask)
    smallest = np.where(np.abs(weight) > np.median(np.abs(weight)), weight, 0)
    found = output_error(inputs, weight, pruned)
    assert output_error(inputs, weight, best) < found < 0.9 * output_error(inputs, weight, smallest)
    refitted = refit_kept(weight, pruned, hessian, damping=1e-9, steps=100)
    assert refitted == pytest.approx(best, abs=1e-4)


def test_more_rows_than_a_block(layer: tuple[np.ndarray, np.ndarray]) -> None:
    random = np.random.default_rng(4)
    inputs = random.normal(size=(600, 300)) + 0.5 * random.normal(size=(600, 4)) @ random.normal(size=(4, 300))
    weight = random.normal(size=(300, 3))
    pruned = prune_obs(weight, factor_inverse(inputs.T @ inputs, 1e-6), sparsity=0.6)
    assert (pruned == 0).sum() == 540
    masked = np.where(pruned != 0, weight, 0)
    assert output_error(inputs, weight, pruned) < 0.75 * output_error(inputs, weight, masked)


def test_zeros_stay_and_count(layer: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, weight = layer
    hessian = inputs.T @ inputs
    given = np.where(np.random.default_rng(5).random(weight.shape) < 0.4, 0, weight)
    pruned = prune_obs(given, factor_inverse(hessian), sparsity=0.5)
    assert (pruned[given == 0] == 0).all()
    assert (pruned == 0).sum() == 120
    assert (refit_kept(given, pruned, hessian)[pruned == 0] == 0).all()


def test_important_outputs_keep_more(layer: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, weight = layer
    gains = np.array([100.0] * 5 + [1.0] * 5)
    pruned = prune_obs(weight, factor_inverse(inputs.T @ inputs), sparsity=0.5, output_weights=gains)
    kept = (pruned != 0).sum(axis=0)
    assert kept[:5].min() > kept[5:].max()


def test_inputs_that_are_always_zero_break_nothing() -> None:
    assert np.isfinite(prune_obs(np.ones((4, 2)), factor_inverse(np.zeros((4, 4))), sparsity=0.5)).all()
    assert np.array_equal(refit_kept(np.ones((4, 2)), np.eye(4, 2), np.zeros((4, 4))), np.eye(4, 2))


def test_rows_that_dont_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        prune_obs(np.ones((6, 2)), np.eye(6), pattern=(2, 4))
