"""GPTQ in blocks against a plain reading of the method, against all roundings, and against rounding to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeslim.algorithms.block_gptq import damp, hessian_error, refine_blocks, round_gptq_blocks
from edgeslim.algorithms.blockwise import BlockGrid, fit_blocks, round_blocks


def correlated(seed: int, rows: int, size: int) -> np.ndarray:
    """Inputs with as much in common as a layer's activations have, some channels larger than others."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, size // 4)) @ rng.normal(size=(size // 4, size)) + 0.3 * rng.normal(size=(rows, size))
    return made * rng.lognormal(0, 0.7, size)


def plain_gptq(weight: np.ndarray, hessian: np.ndarray, size: int, order: np.ndarray, *, symmetric: bool) -> np.ndarray:
    """One column after another in ``order``: round it, then move the rest to where the output error is least.

    Each step inverts what is left of the Hessian by itself (optimal brain quantization), so no factorization is
    shared with the code tested; a block's scale is fitted when the first of its columns comes.
    """
    left = weight.astype(np.float64).copy()
    done = np.zeros_like(left)
    for place, column in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        if place % size == 0:
            part = order[place : place + size]
            cost = [1 / np.linalg.inv(hessian[np.ix_(order[i:], order[i:])])[0, 0] for i in range(place, place + size)]
            grid = fit_blocks(left[:, part], bits=4, block_size=size, symmetric=symmetric, importance=np.array(cost))
        zero = np.asarray(grid.zero_of(0), np.float64)
        step = grid.scale[:, 0].astype(np.float64)
        done[:, column] = (np.clip(np.rint(left[:, column] / step) + zero, 0, 15) - zero) * step
        error = (left[:, column] - done[:, column]) / inverse[0, 0]
        left[:, rest] -= np.outer(error, inverse[0])
    return done


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activation_order", [True, False])
def test_equals_solving_each_step(*, symmetric: bool, activation_order: bool) -> None:
    inputs = correlated(1, 300, 48)
    hessian = inputs.T @ inputs
    weight = np.random.default_rng(2).normal(size=(9, 48)).astype(np.float32)
    order = np.arange(48)
    if activation_order:
        weight_of = np.diag(hessian)
        blocks = sorted((order[i : i + 16] for i in (0, 16, 32)), key=lambda part: -weight_of[part].mean())
        order = np.concatenate([sorted(part, key=lambda column: -weight_of[column]) for part in blocks])
    found = round_gptq_blocks(
        weight,
        hessian,
        bits=4,
        block_size=16,
        symmetric=symmetric,
        activation_order=activation_order,
        refine=False,
    ).dequantize()
    expected = plain_gptq(weight, damp(hessian), 16, order, symmetric=symmetric)
    assert np.mean(np.abs(found - expected) > 1e-3 * np.abs(weight).max()) < 0.01, "but for ties, each step is given"


def test_near_the_best_of_all_roundings() -> None:
    """Two rows of three weights: 4,096 roundings a row can all be tried."""
    inputs = np.array([[1.0, 0.8, -0.5], [0.9, 1.1, 0.3], [-0.2, 0.4, 1.0], [2.0, 1.9, 0.1]])
    hessian = inputs.T @ inputs
    weight = np.array([[0.31, -0.83, 0.52], [-1.13, 0.44, 0.27]], np.float32)
    plain = round_blocks(weight, bits=4, block_size=16, search=False)
    made = refine_blocks(weight, hessian, plain)
    levels = np.array(list(itertools.product(range(16), repeat=3)))
    for row in range(2):
        lost = weight[row] - (levels - 8) * float(made.grid.scale[row, 0])
        best = float(np.min(np.sum((lost @ hessian) * lost, axis=1)))
        reached = hessian_error(weight[row], made.dequantize()[row], hessian)
        assert reached <= 1.5 * best + 1e-12
        assert reached <= hessian_error(weight[row], plain.dequantize()[row], hessian)


@pytest.mark.parametrize("symmetric", [True, False])
def test_less_output_error_than_nearest_on_new_inputs(*, symmetric: bool) -> None:
    inputs, others = np.split(correlated(3, 900, 64), [600])
    hessian, held_out = inputs.T @ inputs, others.T @ others
    weight = np.random.default_rng(5).normal(size=(24, 64)).astype(np.float32)
    settings = {"bits": 4, "block_size": 32, "symmetric": symmetric}
    nearest = round_blocks(weight, **settings)
    errors = [
        hessian_error(weight, made.dequantize(), held_out)
        for made in (
            nearest,
            round_gptq_blocks(weight, hessian, refine=False, **settings),
            round_gptq_blocks(weight, hessian, **settings),
        )
    ]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.97 * errors[1]


def test_refining_never_makes_it_worse() -> None:
    inputs = correlated(6, 100, 32)
    hessian = damp(inputs.T @ inputs)
    weight = np.random.default_rng(7).normal(size=(12, 32)).astype(np.float32)
    made = round_blocks(weight, bits=4, block_size=16)
    before = hessian_error(weight, made.dequantize(), hessian)
    assert hessian_error(weight, refine_blocks(weight, hessian, made).dequantize(), hessian) < 0.8 * before
    perfect = BlockGrid(bits=4, block_size=16, scale=np.full((12, 2), 0.25, np.float32), zero_point=None)
    on_grid = perfect.round(weight)
    kept = refine_blocks(on_grid.dequantize(), hessian, on_grid)
    np.testing.assert_array_equal(kept.dequantize(), on_grid.dequantize())


@pytest.mark.parametrize("count", [1, 5, 40])
def test_fewer_samples_than_channels(count: int) -> None:
    inputs = correlated(8, count, 64)
    hessian = inputs.T @ inputs
    weight = np.random.default_rng(9).normal(size=(10, 64)).astype(np.float32)
    made = round_gptq_blocks(weight, hessian, bits=4, block_size=16)
    nearest = round_blocks(weight, bits=4, block_size=16)
    assert np.isfinite(made.grid.scale).all()
    assert hessian_error(weight, made.dequantize(), hessian) < hessian_error(weight, nearest.dequantize(), hessian)
    assert np.abs(made.dequantize() - weight).max() < 4 * np.abs(weight).max()


def test_no_inputs_at_all_is_nearest_and_infinite_ones_are_refused() -> None:
    weight = np.random.default_rng(10).normal(size=(4, 32)).astype(np.float32)
    made = round_gptq_blocks(weight, np.zeros((32, 32)), bits=4, block_size=16, refine=False)
    np.testing.assert_array_equal(made.levels, round_blocks(weight, bits=4, block_size=16).levels)
    with pytest.raises(ValueError, match="Hessian"):
        round_gptq_blocks(weight, np.full((32, 32), np.inf), bits=4, block_size=16)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_of_a_pruned_weight_stay(symmetric: bool) -> None:
    rng = np.random.default_rng(9)
    inputs = rng.normal(size=(200, 16)) @ rng.normal(size=(16, 64)) + 0.1 * rng.normal(size=(200, 64))
    weight = np.where(rng.random((40, 64)) < 0.5, 0, rng.normal(size=(40, 64)))
    made = round_gptq_blocks(weight, inputs.T @ inputs, bits=4, block_size=16, symmetric=symmetric)
    assert not made.dequantize()[weight == 0].any()
    assert made.dequantize().any()
