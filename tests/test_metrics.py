"""Metrics against values worked by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeslim import metrics


def test_l2_normalize_by_hand() -> None:
    unit = metrics.l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert unit.dtype == np.float64
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]])


def test_mean_pool_leaves_out_padding_whatever_it_holds() -> None:
    hidden = np.array([[[1.0, 2.0], [3.0, 6.0], [np.inf, np.nan]], [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(metrics.mean_pool(hidden, mask), [[2.0, 4.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("left", "right", "cosine"),
    [
        ([1.0, 0.0], [2.0, 0.0], 1.0),
        ([1.0, 0.0], [0.0, 3.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], -1.0),
        ([3.0, 4.0], [4.0, 3.0], 0.96),
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
    ],
)
def test_cosine_rows(left: list[float], right: list[float], cosine: float) -> None:
    np.testing.assert_allclose(metrics.cosine_rows(np.array([left]), np.array([right])), [cosine])


def test_spearman_by_hand() -> None:
    # Ranks 1 2.5 2.5 4 against 1 2 4 3: deviations -1.5 0 0 1.5 and -1.5 -0.5 1.5 0.5; 3 / sqrt(4.5 * 5).
    assert metrics.spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 40, 30])) == pytest.approx(3 / np.sqrt(22.5))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_scipy_with_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    left, right = generator.integers(0, 12, 200), generator.integers(0, 12, 200)
    right[:120] = left[:120]
    expected = stats.spearmanr(left, right).statistic
    assert metrics.spearman(left, right) == pytest.approx(expected, abs=1e-12)


def test_spearman_of_constants() -> None:
    assert metrics.spearman(np.array([1, 1, 1]), np.array([5, 5, 5])) == 1.0
    assert metrics.spearman(np.array([1, 1, 1]), np.array([1, 2, 3])) == 0.0


def test_similarity_spearman_equals_scipy_and_ignores_rotation() -> None:
    generator = np.random.default_rng(1)
    reference = generator.normal(size=(20, 8))
    candidate = reference + 0.5 * generator.normal(size=(20, 8))

    def pairs(vectors: np.ndarray) -> list[float]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return [float(unit[i] @ unit[j]) for i in range(20) for j in range(i + 1, 20)]

    expected = stats.spearmanr(pairs(candidate), pairs(reference)).statistic
    assert metrics.similarity_spearman(candidate, reference) == pytest.approx(expected, abs=1e-12)
    rotation = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    assert metrics.similarity_spearman(reference @ rotation, reference) == pytest.approx(1.0, abs=1e-4)


def test_top_k_overlap_by_hand() -> None:
    angles = np.deg2rad([0.0, 10.0, 30.0, 80.0])
    reference = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Nearest two of each: {1,2} {0,2} {1,0} {2,1}. Row 3 moves to -20 degrees: {1,3} {0,2} {1,0} {0,1}.
    moved = np.deg2rad([0.0, 10.0, 30.0, -20.0])
    candidate = np.stack([np.cos(moved), np.sin(moved)], axis=1)
    assert metrics.top_k_overlap(candidate, reference, k=2) == pytest.approx((1 + 2 + 2 + 1) / 8)
    assert metrics.top_k_overlap(reference, reference, k=2) == 1.0


def test_top_k_overlap_takes_at_most_all_other_rows() -> None:
    generator = np.random.default_rng(2)
    assert metrics.top_k_overlap(generator.normal(size=(4, 3)), generator.normal(size=(4, 3)), k=10) == 1.0


def test_top_k_overlap_equals_a_plain_loop() -> None:
    generator = np.random.default_rng(3)
    reference = generator.normal(size=(40, 6))
    candidate = reference + 0.7 * generator.normal(size=(40, 6))

    def nearest(vectors: np.ndarray, row: int) -> set[int]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return set(sorted((other for other in range(40) if other != row), key=lambda i: -(unit[i] @ unit[row]))[:10])

    expected = np.mean([len(nearest(candidate, row) & nearest(reference, row)) / 10 for row in range(40)])
    assert metrics.top_k_overlap(candidate, reference) == pytest.approx(expected)


def test_pairwise_cosine_survives_nan() -> None:
    similarities = metrics.pairwise_cosine(np.array([[1.0, 0.0], [np.nan, 1.0]]))
    np.testing.assert_allclose(similarities, [[1.0, 0.0], [0.0, 0.0]])


def test_accuracy_by_hand() -> None:
    assert metrics.accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])) == 0.75


@pytest.mark.parametrize(
    ("predicted", "truth", "classes", "f1"),
    [
        # Class 1: 2 right of 3 guessed, 2 of 4 there: 2 * 2 / (3 + 4).
        ([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], 2, 4 / 7),
        # Classes 0, 1, 2: 2*1/(1+2), 2*1/(2+1), 2*1/(2+2).
        ([0, 1, 1, 2, 2], [0, 0, 1, 2, 2], 3, (2 / 3 + 2 / 3 + 1) / 3),
        ([0, 2, 1], [0, 1, 2], 3, 1 / 3),
        # Class 2 occurs nowhere and doesn't count; class 1 is guessed once and never right.
        ([0, 1, 0], [0, 0, 0], 3, (4 / 5 + 0) / 2),
        ([0, 0], [0, 0], 2, 0.0),
    ],
)
def test_f1_score(predicted: list[int], truth: list[int], classes: int, f1: float) -> None:
    assert metrics.f1_score(np.array(predicted), np.array(truth), classes) == pytest.approx(f1)
