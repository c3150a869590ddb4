"""Smoothing: exact before rounding, and better after it where channels differ."""

from __future__ import annotations

import numpy as np

from edgeslim.algorithms.smoothing import Smoothing, search_smoothing, smoothing_scale
from edgeslim.numerics import quantize_activation, quantize_weight


def problem(seed: int, *, outliers: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, 40)).astype(np.float32)
    if outliers:
        inputs[:, 3] *= 50
        inputs[:, 17] *= 20
    return inputs, rng.normal(size=(40, 24)).astype(np.float32)


def quantized_output(inputs: np.ndarray, weight: np.ndarray, site: Smoothing) -> np.ndarray:
    scale = np.ones(inputs.shape[1], np.float32) if site.scale is None else site.scale
    integers = quantize_activation(inputs / scale, site.affine).astype(np.float64) - site.affine.zero_point
    return integers * site.affine.scale @ quantize_weight(weight * scale[:, None], axis=1).dequantize(1)


def test_scale_by_hand() -> None:
    scale = smoothing_scale(np.array([16.0, 1.0, 0.0]), np.array([1.0, 4.0, 2.0]), 0.5)
    # sqrt(16 / 1) = 4 and sqrt(1 / 4) = 0.5, over their geometric mean sqrt(2); an input that is never used gets 1.
    np.testing.assert_allclose(scale, [4 / np.sqrt(2), 0.5 / np.sqrt(2), 1.0], rtol=1e-6)


def test_moving_the_scale_changes_nothing_before_rounding() -> None:
    inputs, weight = problem(1, outliers=True)
    scale = smoothing_scale(np.abs(inputs).max(axis=0), np.abs(weight).max(axis=1), 0.7)
    np.testing.assert_allclose((inputs / scale) @ (weight * scale[:, None]), inputs @ weight, rtol=1e-3, atol=1e-3)


def test_outlying_channels_are_smoothed() -> None:
    inputs, weight = problem(2, outliers=True)
    unseen, _ = problem(3, outliers=True)
    maximum = np.abs(inputs).max(axis=0)
    smoothed = search_smoothing(inputs, [weight], maximum, symmetric=False)
    plain = search_smoothing(inputs, [weight], maximum, symmetric=False, allowed=False)
    assert smoothed.scale is not None
    assert plain.scale is None
    wanted = unseen @ weight
    errors = [np.square(quantized_output(unseen, weight, site) - wanted).sum() for site in (smoothed, plain)]
    assert errors[0] < 0.25 * errors[1]
    # The error that it says is the one that is there, a row's relative to the row's own power and the typical one.
    found = np.square(quantized_output(inputs, weight, smoothed) - inputs @ weight).sum(axis=1)
    powers = np.square((inputs @ weight).astype(np.float64)).sum(axis=1)
    counts = 1 / (powers + np.median(powers))
    np.testing.assert_allclose(smoothed.error, (counts @ found) / (counts @ powers), rtol=1e-3)


def test_even_channels_are_left_alone() -> None:
    inputs, weight = problem(4, outliers=False)
    site = search_smoothing(inputs, [weight], np.abs(inputs).max(axis=0), symmetric=False)
    assert site.scale is None


def test_all_layers_of_one_input_count() -> None:
    inputs, weight = problem(5, outliers=True)
    maximum = np.abs(inputs).max(axis=0)
    both = search_smoothing(inputs, [weight[:, :10], weight[:, 10:]], maximum, symmetric=True)
    whole = search_smoothing(inputs, [weight], maximum, symmetric=True)
    assert both.affine == whole.affine
    assert both.affine.zero_point == 128
    np.testing.assert_array_equal(both.scale, whole.scale)


def test_inputs_of_zeros() -> None:
    site = search_smoothing(np.zeros((5, 4), np.float32), [np.ones((4, 3), np.float32)], np.zeros(4), symmetric=False)
    assert site.scale is None
    assert np.all(quantized_output(np.zeros((2, 4), np.float32), np.ones((4, 3), np.float32), site) == 0)
