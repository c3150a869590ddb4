"""Decompositions against SciPy's and NumPy's own, and rank allocation against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg

from edgeslim.algorithms.factorization import allocate_ranks, ranks_for_error, shrink_moment, whitened_svd

RANDOM = np.random.default_rng(7)
WEIGHT = RANDOM.normal(size=(20, 14)) @ np.diag(0.8 ** np.arange(14))
INPUTS = RANDOM.normal(size=(300, 20)) @ RANDOM.normal(size=(20, 20))
GRADIENTS = RANDOM.normal(size=(300, 14)) * np.linspace(0.1, 3, 14)


def test_plain_is_the_svd() -> None:
    spectrum = whitened_svd(WEIGHT)
    assert spectrum.values == pytest.approx(scipy.linalg.svdvals(WEIGHT))
    left, right = spectrum.factors(5)
    assert (left.shape, right.shape) == ((20, 5), (5, 14))
    u, s, vt = np.linalg.svd(WEIGHT)
    assert left @ right == pytest.approx((u[:, :5] * s[:5]) @ vt[:5], abs=1e-5)
    assert np.square(WEIGHT - left @ right).sum() == pytest.approx(spectrum.errors()[5], rel=1e-4)


def test_one_rank_by_hand() -> None:
    left, right = whitened_svd(np.array([[3.0, 0.0], [0.0, 1.0]])).factors(1)
    assert left @ right == pytest.approx(np.array([[3.0, 0.0], [0.0, 0.0]]))
    # An input a hundred times as strong turns the order round.
    left, right = whitened_svd(np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([1.0, 1e4])).factors(1)
    assert left @ right == pytest.approx(np.array([[0.0, 0.0], [0.0, 1.0]]), abs=1e-5)


def test_whitening_gives_the_best_outputs() -> None:
    spectrum = whitened_svd(WEIGHT, INPUTS.T @ INPUTS)
    left, right = spectrum.factors(6)
    found = np.square(INPUTS @ (WEIGHT - left @ right)).sum()
    # The best approximation of XW of rank 6 (Eckart & Young) lies in the span of X, so it can be reached.
    assert found == pytest.approx(np.square(scipy.linalg.svdvals(INPUTS @ WEIGHT)[6:]).sum(), rel=1e-2)
    assert found == pytest.approx(spectrum.errors()[6], rel=1e-2)
    plain_left, plain_right = whitened_svd(WEIGHT).factors(6)
    assert found < 0.8 * np.square(INPUTS @ (WEIGHT - plain_left @ plain_right)).sum()


def test_both_sides_minimize_the_product_of_both_moments() -> None:
    inner, outer = INPUTS.T @ INPUTS, GRADIENTS.T @ GRADIENTS
    left, right = whitened_svd(WEIGHT, inner, outer).factors(6)

    def loss(other: np.ndarray) -> float:
        difference = WEIGHT - other
        return float(np.trace(difference.T @ inner @ difference @ outer))

    best = loss(left @ right)
    for rivals in ((None, None), (inner, None), (None, outer)):
        other_left, other_right = whitened_svd(WEIGHT, *rivals).factors(6)
        assert best < loss(other_left @ other_right)


def test_shrinking_by_hand_and_towards_what_many_samples_say() -> None:
    assert shrink_moment(np.array([[4.0, 2.0], [2.0, 2.0]]), 0.5) == pytest.approx(np.array([[3.5, 1.0], [1.0, 2.5]]))
    true = np.diag(np.linspace(0.5, 2, 40))
    few = RANDOM.normal(size=(30, 40)) @ np.sqrt(true)
    sample = few.T @ few / 30
    assert np.linalg.norm(shrink_moment(sample, 0.3) - true) < 0.8 * np.linalg.norm(sample - true)
    assert shrink_moment(sample, 0.0) == pytest.approx(sample)
    # Half of the directions are unseen: only a shrunk moment keeps the weights there from going for free.
    weight, seen = RANDOM.normal(size=(20, 40)), sample
    lost = {}
    for share in (0.0, 0.3):
        left, right = whitened_svd(weight, None, shrink_moment(seen, share)).factors(12)
        difference = weight - left @ right
        lost[share] = float(np.trace(difference @ true @ difference.T))
    assert lost[0.3] < 0.9 * lost[0.0]


def test_factors_are_balanced() -> None:
    left, right = whitened_svd(WEIGHT, INPUTS.T @ INPUTS).factors(6)
    assert np.linalg.norm(left, axis=0) == pytest.approx(np.linalg.norm(right, axis=1), rel=1e-4)


def test_ranks_are_as_good_as_trying_everything() -> None:
    spectra = [whitened_svd(RANDOM.normal(size=shape) * scale) for shape, scale in (((9, 9), 1), ((12, 8), 0.3))]
    for keep in (0.5, 0.7, 0.9):
        chosen = allocate_ranks(spectra, keep)
        options = [[*range(1, spectrum.useful_rank + 1), None] for spectrum in spectra]

        def size(ranks: tuple[int | None, ...]) -> int:
            pairs = zip(spectra, ranks, strict=True)
            return sum(s.dense_size if r is None else r * sum(s.shape) for s, r in pairs)

        def error(ranks: tuple[int | None, ...]) -> float:
            return float(sum(0 if r is None else s.errors()[r] for s, r in zip(spectra, ranks, strict=True)))

        budget = keep * sum(spectrum.dense_size for spectrum in spectra)
        best = min(error(ranks) for ranks in itertools.product(*options) if size(ranks) <= budget)
        assert size(tuple(chosen)) <= budget
        assert error(tuple(chosen)) <= 1.35 * best  # the Lagrangian finds the convex hull; the rest is spent greedily


def test_ranks_for_an_error_keep_it() -> None:
    spectra = [whitened_svd(WEIGHT), whitened_svd(WEIGHT.T @ WEIGHT)]
    power = sum(float(np.square(s.values).sum()) for s in spectra)
    sizes = []
    for bound in (0.001, 0.01, 0.1):
        ranks = ranks_for_error(spectra, bound)
        pairs = list(zip(spectra, ranks, strict=True))
        assert sum(0 if r is None else float(s.errors()[r]) for s, r in pairs) <= bound * power
        sizes.append(sum(s.dense_size if r is None else r * sum(s.shape) for s, r in pairs))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="more than"):
        allocate_ranks([whitened_svd(WEIGHT)], 0.1, multiple=4)
    with pytest.raises(ValueError, match="NaN"):
        whitened_svd(WEIGHT, np.full((20, 20), np.nan))
