"""Quantization arithmetic against values worked by hand, NumPy on the raw data, SciPy, PyTorch and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from onnx import TensorProto, helper

from edgeslim import numerics
from edgeslim.numerics import Histogram, activation_affine, choose_range, quantize_activation, quantize_weight


def heavy_tailed(seed: int, size: int = 200_000) -> np.ndarray:
    """Like a transformer's activations: a narrow bulk, skewed, with a few values far out."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.1, 1.0, size)
    values[:20] = rng.uniform(15, 25, 20)
    return values.astype(np.float32)


def filled(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def test_weight_by_hand() -> None:
    weight = np.array([[1.27, -0.5], [0.635, 0.25]], np.float32)
    made = quantize_weight(weight, axis=1)
    assert made.zero_point is None
    np.testing.assert_allclose(made.scale, [0.01, 0.5 / 127], rtol=1e-6)
    # 0.25 / (0.5 / 127) = 63.5, a tie: to even.
    assert made.values.tolist() == [[127, -127], [64, 64]]
    assert made.values.dtype == np.int8


@pytest.mark.parametrize("axis", [0, 1, None])
def test_symmetric_weight_equals_torch(axis: int | None) -> None:
    weight = np.random.default_rng(1).normal(size=(7, 11)).astype(np.float32)
    made = quantize_weight(weight, axis=axis)
    tensor = torch.from_numpy(weight)
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(tensor, float(made.scale), 0, -127, 127)
    else:
        zeros = torch.zeros(weight.shape[axis], dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(tensor, torch.from_numpy(made.scale), zeros, axis, -127, 127)
    np.testing.assert_allclose(made.dequantize(axis), expected.numpy(), rtol=0, atol=1e-6)


def test_affine_weight_is_finer_on_one_sided_channels() -> None:
    weight = np.random.default_rng(2).uniform(0.0, 1.0, (64, 5)).astype(np.float32)
    affine, symmetric = quantize_weight(weight, axis=1, symmetric=False), quantize_weight(weight, axis=1)
    error = np.abs(affine.dequantize(1) - weight).max()
    assert error <= 0.5 / 255 + 1e-6
    assert error < 0.6 * np.abs(symmetric.dequantize(1) - weight).max()


def test_a_channel_of_zeros_stays_zero() -> None:
    for symmetric in (True, False):
        made = quantize_weight(np.zeros((3, 2), np.float32), axis=1, symmetric=symmetric)
        assert np.all(made.dequantize(1) == 0)
        assert np.all(np.isfinite(made.scale))


def test_histogram_does_not_depend_on_order_or_chunks() -> None:
    values = heavy_tailed(3, 10_000)
    pieces = np.array_split(values, 13)
    histograms = []
    for order in ([*range(13)], [*reversed(range(13))]):
        histogram = Histogram()
        for index in order:
            histogram.update(pieces[index].reshape(-1, 1))
        histograms.append(histogram)
    whole = filled(values)
    for histogram in histograms:
        assert np.array_equal(histogram.counts, whole.counts)
        assert (histogram.low, histogram.high, histogram.limit) == (values.min(), values.max(), whole.limit)
    edges = np.linspace(-whole.limit, whole.limit, numerics.BINS + 1)
    assert np.array_equal(whole.counts, np.histogram(values, edges)[0])


def test_histogram_of_zeros_then_values() -> None:
    histogram = filled(np.zeros(5, np.float32))
    assert choose_range(histogram, "mse", symmetric=False) == (0.0, 0.0)
    histogram.update(np.array([-3.0, 1.0]))
    assert histogram.counts.sum() == 7
    assert histogram.limit == 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_histogram_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Histogram().update(np.array([0.0, bad]))


def test_minmax_includes_zero() -> None:
    histogram = filled(np.array([2.0, 3.0], np.float32))
    assert choose_range(histogram, "minmax", symmetric=False) == (0.0, 3.0)
    assert choose_range(histogram, "minmax", symmetric=True) == (-3.0, 3.0)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_equals_numpy_within_a_bin(percentile: float) -> None:
    values = heavy_tailed(4)
    histogram = filled(values)
    width = 2 * histogram.limit / numerics.BINS
    outside = (100 - percentile) / 2
    low, high = choose_range(histogram, "percentile", symmetric=False, percentile=percentile)
    # A gap in the data lets every value inside it be the percentile, so compare what is left out.
    assert abs(np.mean(values < low - width) * 100 - outside) <= outside
    assert np.mean(values > high) * 100 <= outside
    np.testing.assert_allclose(low, np.percentile(values, outside), atol=2 * width + 0.05)
    _, bound = choose_range(histogram, "percentile", symmetric=True, percentile=percentile)
    assert np.mean(np.abs(values) > bound) * 100 <= 100 - percentile


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_range_is_the_best_on_the_raw_data(*, symmetric: bool) -> None:
    values = heavy_tailed(5, 50_000)
    low, high = choose_range(filled(values), "mse", symmetric=symmetric)

    def error(a: float, b: float) -> float:
        affine = activation_affine(a, b, symmetric=symmetric)
        back = (quantize_activation(values, affine).astype(np.float64) - affine.zero_point) * affine.scale
        return float(np.mean((back - values) ** 2))

    full = choose_range(filled(values), "minmax", symmetric=symmetric)
    best = min(error(full[0] * fraction, full[1] * fraction) for fraction in numerics.CLIP_FRACTIONS)
    assert error(low, high) <= 1.02 * best
    assert error(low, high) < 0.999 * error(*full)


def test_entropy_range_equals_a_plain_reading_of_the_method() -> None:
    values = heavy_tailed(6, 20_000)
    histogram = filled(values)
    low, high = choose_range(histogram, "entropy", symmetric=False)
    full = choose_range(histogram, "minmax", symmetric=False)

    def divergence(a: float, b: float) -> float:
        inside = [index for index, center in enumerate(histogram.centers()) if a <= center <= b]
        p = [float(histogram.counts[index]) for index in inside]
        kept = list(p)
        p[0] += float(histogram.counts[: inside[0]].sum())
        p[-1] += float(histogram.counts[inside[-1] + 1 :].sum())
        levels: dict[int, list[int]] = {}
        for position, index in enumerate(inside):
            level = min(int((histogram.centers()[index] - a) / (b - a) * 256), 255)
            levels.setdefault(level, []).append(position)
        q = [0.0] * len(p)
        for positions in levels.values():
            filled_positions = [position for position in positions if kept[position] > 0]
            for position in filled_positions:
                q[position] = sum(kept[other] for other in positions) / len(filled_positions)
        total = sum(q)
        return float(scipy.stats.entropy(np.array(p) / sum(p), np.maximum(np.array(q) / total, 1e-12)))

    for fraction in numerics.CLIP_FRACTIONS[::5]:
        expected = divergence(full[0] * fraction, full[1] * fraction)
        found = numerics._divergence(histogram, full[0] * fraction, full[1] * fraction, 256)
        assert found == pytest.approx(expected, rel=1e-6)
        assert divergence(low, high) <= expected * (1 + 1e-6)


def test_entropy_survives_a_narrow_and_a_constant_tensor() -> None:
    for values in (np.full(100, 3.0, np.float32), np.array([1e-30, -1e-30], np.float32)):
        low, high = choose_range(filled(values), "entropy", symmetric=False)
        assert low <= 0 <= high
        assert high > low


@pytest.mark.parametrize(("low", "high", "symmetric"), [(-1.0, 3.0, True), (-1.0, 3.0, False), (0.0, 0.0, False)])
def test_activation_equals_onnx_runtime(*, low: float, high: float, symmetric: bool) -> None:
    import onnxruntime as ort

    affine = activation_affine(low, high, symmetric=symmetric)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [affine.scale]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [affine.zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.random.default_rng(7).normal(0.5, 2, 4096).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], quantize_activation(values, affine))
    assert quantize_activation(np.zeros(1, np.float32), affine)[0] == affine.zero_point


def test_a_scale_that_is_given_is_kept() -> None:
    weight = np.array([[0.9, -40.0], [1.6, 3.0]], np.float32)
    given = quantize_weight(weight, axis=1, scale=np.array([0.5, 0.25], np.float32))
    np.testing.assert_array_equal(given.values, [[2, -127], [3, 12]])
    np.testing.assert_array_equal(given.dequantize(1), [[1.0, -31.75], [1.5, 3.0]])
