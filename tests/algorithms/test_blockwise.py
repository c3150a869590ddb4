"""Blocks of few bits against cases worked by hand and against the layout of ONNX Runtime's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight, fit_blocks, round_blocks, round_scale, stored_bytes

RNG = np.random.default_rng(0)


def exact_weight(bits: int, size: int, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight [6, 3 blocks] that lies on its grid, with its levels and zero points."""
    top = (1 << bits) - 1
    levels = RNG.integers(0, top + 1, (6, 3, size))
    zero = np.full((6, 3), 1 << (bits - 1)) if symmetric else RNG.integers(1, top, (6, 3))
    levels[:, :, 0] = 0
    levels[:, :, 1] = top
    scale = 2.0 ** RNG.integers(-6, 2, (6, 3))
    weight = (levels - zero[..., None]) * scale[..., None]
    return weight.reshape(6, -1).astype(np.float32), levels.reshape(6, -1), zero


def test_a_block_by_hand() -> None:
    weight = np.array([[-4.0, 3.5, 0.1, 1.2] * 4], np.float32)
    made = round_blocks(weight, bits=4, block_size=16, search=False)
    assert made.grid.scale.tolist() == [[0.5]]  # the largest magnitude, -4, takes level 0 of 0 to 15
    assert made.levels[0, :4].tolist() == [0, 15, 8, 10]
    assert made.dequantize()[0, :4].tolist() == [-4.0, 3.5, 0.0, 1.0]
    assert made.packed().tolist() == [[[0xF0, 0xA8] * 4]]
    turned = round_blocks(-weight, bits=4, block_size=16, search=False)
    assert turned.grid.scale.tolist() == [[-0.5]]  # the sign of the scale says on which side the ninth level is
    assert turned.dequantize()[0, :4].tolist() == [4.0, -3.5, 0.0, -1.0]


def test_an_affine_block_by_hand() -> None:
    weight = np.array([[-1.0, 14.0, 0.4, 3.0] * 4], np.float32)
    made = round_blocks(weight, bits=4, block_size=16, symmetric=False, search=False)
    assert made.grid.scale.tolist() == [[1.0]]
    assert made.grid.zero_point is not None
    assert made.grid.zero_point.tolist() == [[1]]
    assert made.levels[0, :4].tolist() == [0, 15, 1, 4]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [16, 32])
def test_packed_as_onnxruntime_packs(bits: int, size: int, *, symmetric: bool) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    weight, levels, zero = exact_weight(bits, size, symmetric=symmetric)
    config = DefaultWeightOnlyQuantConfig(block_size=size, is_symmetric=symmetric, bits=bits)
    packed, scales, zero_points = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight.T))
    made = round_blocks(weight, bits=bits, block_size=size, symmetric=symmetric)
    np.testing.assert_array_equal(made.dequantize(), weight)
    np.testing.assert_array_equal(made.packed(), packed)
    np.testing.assert_array_equal(made.grid.scale, scales.reshape(6, 3))
    np.testing.assert_array_equal(made.levels, levels)
    if not symmetric:
        np.testing.assert_array_equal(made.grid.zero_point, zero)
        np.testing.assert_array_equal(made.packed_zero_points(), zero_points.reshape(6, -1))


def test_the_last_block_is_filled_up() -> None:
    weight = RNG.normal(size=(3, 40)).astype(np.float32)
    made = round_blocks(weight, bits=4, block_size=32, symmetric=False)
    assert made.packed().shape == (3, 2, 16)
    assert made.grid.zero_point is not None
    filling = made.packed()[:, 1, 4:]
    assert (filling == (made.grid.zero_point[:, 1] * 17)[:, None]).all(), "both nibbles are zero points"
    assert made.dequantize().shape == weight.shape
    zeros = made.packed_zero_points()
    assert zeros is not None
    assert zeros.shape == (3, 1)
    taken = made.packed().nbytes + zeros.nbytes + made.grid.scale.nbytes
    assert taken == stored_bytes(3, 40, bits=4, block_size=32, symmetric=False)


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_beats_the_whole_range_and_a_dense_grid_is_hardly_better(*, symmetric: bool) -> None:
    weight = RNG.standard_t(4, size=(200, 32)).astype(np.float32)
    error = {
        search: np.square(
            round_blocks(weight, bits=4, block_size=32, symmetric=symmetric, search=search).dequantize() - weight
        ).sum(axis=1)
        for search in (True, False)
    }
    assert (error[True] <= error[False] * (1 + 1e-6)).all()
    assert error[True].sum() < 0.95 * error[False].sum()
    if symmetric:
        dense = np.full(200, np.inf)
        extreme = np.abs(weight).max(axis=1)
        for scale in np.concatenate([np.linspace(-1.2, -0.3, 200), np.linspace(0.3, 1.2, 200)]):
            step = (extreme * scale / 8)[:, None]
            found = np.square(np.clip(np.rint(weight / step), -8, 7) * step - weight).sum(axis=1)
            dense = np.minimum(dense, found)
        assert error[True].sum() < 1.05 * dense.sum()


def test_importance_moves_the_scale_towards_what_counts() -> None:
    weight = RNG.normal(size=(100, 16)).astype(np.float32)
    weight[:, 0] *= 6
    importance = np.ones(16)
    importance[0] = 1e-4
    plain = round_blocks(weight, bits=4, block_size=16)
    led = round_blocks(weight, bits=4, block_size=16, importance=importance)

    def lost(made: BlockWeight) -> float:
        return float(np.square(made.dequantize() - weight)[:, 1:].sum())

    assert lost(led) < 0.6 * lost(plain)


def test_zeros_and_scales_out_of_range() -> None:
    made = round_blocks(np.zeros((2, 32), np.float32), bits=4, block_size=16)
    assert not made.dequantize().any()
    assert (made.grid.scale == 1).all()
    assert round_scale(np.array([0.0, np.nan, np.inf, 1e-44])).tolist() == [1, 1, 1, 1]
    kept = round_scale(RNG.normal(size=1000))
    assert (kept.view(np.uint32) & 0xFFFF == 0).all(), "16 bits of 32 are zero"
    affine = fit_blocks(np.ones((1, 16), np.float32), bits=4, block_size=16, symmetric=False)
    assert isinstance(affine, BlockGrid)
    np.testing.assert_allclose(affine.round(np.ones((1, 16), np.float32)).dequantize(), 1, rtol=4e-3)
