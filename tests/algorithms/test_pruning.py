"""Masks by hand and against NumPy sorting."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.pruning import (
    keep_global,
    keep_largest,
    keep_n_of_m,
    keep_zeros,
    parse_pattern,
    sparsity_of,
)


def test_by_hand() -> None:
    values = np.array([[3.0, 1.0], [2.0, 4.0]])
    assert keep_largest(values, 0.5).tolist() == [[True, False], [False, True]]


def test_ties_go_in_memory_order_and_the_count_is_exact() -> None:
    assert keep_largest(np.ones(5), 0.4).tolist() == [False, False, True, True, True]
    assert keep_largest(np.ones(10), 0.3).sum() == 7  # 0.3 * 10 is 2.9999... in floats


@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.9, 1.0])
def test_global_is_the_sorted_order_of_all(sparsity: float) -> None:
    random = np.random.default_rng(1)
    tensors = [random.random((7, 11)), random.random(50) * 0.3]
    masks = keep_global(tensors, sparsity)
    flat = np.concatenate([tensor.ravel() for tensor in tensors])
    expected = np.ones(flat.size, bool)
    expected[np.argsort(flat, kind="stable")[: int(sparsity * flat.size)]] = False
    assert np.array_equal(np.concatenate([mask.ravel() for mask in masks]), expected)
    assert [mask.shape for mask in masks] == [(7, 11), (50,)]


def test_two_of_four_runs_along_the_inputs() -> None:
    values = np.array([[1.0, 9.0], [4.0, 8.0], [3.0, 1.0], [2.0, 2.0]])
    expected = [[False, True], [True, True], [True, False], [False, False]]
    assert keep_n_of_m(values, 2, 4).tolist() == expected
    assert (
        keep_n_of_m(np.random.default_rng(0).random((64, 5, 3)), 3, 8).reshape(8, 8, 15).sum(axis=1).tolist()
        == [[3] * 15] * 8
    )


def test_patterns() -> None:
    assert parse_pattern("none") is None
    assert parse_pattern("2:4") == (2, 4)
    for bad in ("4:2", "2:2", "0:4", "2", "a:b", "2:4:8", "1:999"):
        with pytest.raises(ValueError, match="N:M"):
            parse_pattern(bad)


def test_zeros_count_as_pruned_from_a_fifth_on() -> None:
    values = np.arange(10.0)
    assert sparsity_of(values) == pytest.approx(0.1)
    assert keep_zeros(values) is None
    values[1] = 0
    assert np.array_equal(keep_zeros(values), values != 0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_largest(np.array([1.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="0 to 1"):
        keep_largest(np.ones(2), 1.5)
    with pytest.raises(ValueError, match="multiple of 4"):
        keep_n_of_m(np.ones((6, 2)), 2, 4)
