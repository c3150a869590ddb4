"""k-means in one dimension by hand, and against SciPy's and the exact optimum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from edgeslim.algorithms.clustering import fit_codebook


def exact_error(values: np.ndarray, count: int) -> float:
    """The least squared error of all partitions of sorted values into intervals, by dynamic programming."""
    ordered = np.sort(values)
    size = len(ordered)
    cost = np.array([[np.square(ordered[i : j + 1] - ordered[i : j + 1].mean()).sum() if i <= j else 0.0
                      for j in range(size)] for i in range(size)])  # fmt: skip
    best = cost[0].copy()
    for _ in range(count - 1):
        best = np.array([min([best[j], *(best[i - 1] + cost[i, j] for i in range(1, j + 1))]) for j in range(size)])
    return float(best[-1])


def error(values: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.square(values - decoded).sum())


def test_by_hand() -> None:
    book = fit_codebook(np.array([[1.0, 2.0], [10.0, 12.0]]), 1)
    assert book.values.tolist() == [1.5, 11.0]
    assert book.index.tolist() == [[0, 0], [1, 1]]
    assert book.decode().dtype == np.float32


def test_near_the_optimum() -> None:
    values = np.random.default_rng(1).normal(size=60)
    assert error(values, fit_codebook(values, 2).decode()) <= 1.1 * exact_error(values, 4)


def test_not_worse_than_scipy() -> None:
    values = np.random.default_rng(2).laplace(size=5000)
    book = fit_codebook(values, 4)
    centers, labels = kmeans2(values[:, None], 16, minit="++", seed=3)
    assert error(values, book.decode()) <= 1.1 * error(values, centers[labels, 0])
    nearest = np.abs(values[:, None] - book.values[None]).argmin(axis=1)
    assert np.mean(nearest == book.index) > 0.999  # but for ties of rounding to float32


def test_zero_is_a_value_of_its_own() -> None:
    values = np.random.default_rng(3).normal(size=1000)
    values[:700] = 0
    book = fit_codebook(values, 3, keep_zero=True)
    decoded = book.decode()
    assert len(book.values) == 8
    assert np.array_equal(decoded == 0, values == 0)
    assert error(values, decoded) < error(values, fit_codebook(values, 2, keep_zero=True).decode())


def test_importance_moves_the_centroids() -> None:
    values = np.array([0.0, 1.0, 10.0, 11.0])
    book = fit_codebook(values, 1, importance=np.array([3.0, 1.0, 0.0, 1.0]))
    assert book.values == pytest.approx([0.25, 11.0])


def test_few_distinct_values_are_kept_exactly() -> None:
    values = np.repeat(np.array([0.1, -0.7, 3.0], np.float32), 5)
    assert np.array_equal(fit_codebook(values, 2).decode(), values)
    assert np.array_equal(fit_codebook(np.zeros(4), 3, keep_zero=True).decode(), np.zeros(4))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        fit_codebook(np.ones(3), 9)
    with pytest.raises(ValueError, match="NaN"):
        fit_codebook(np.array([1.0, np.inf]), 2)
