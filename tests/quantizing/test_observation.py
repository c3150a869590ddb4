"""What calibration keeps: exact where it is exact, bounded where it samples."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Batch, Feed, Quiet
from edgeslim.errors import BadInputError
from edgeslim.numerics import activation_affine, quantize_activation
from edgeslim.quantizing.observation import ROWS, input_hessian, observe


def batches(count: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    shapes = [(1, 1 + index % 7, 6) for index in range(count)]
    return [Batch(feed={"x": rng.normal(size=shape).astype(np.float32)}, rows=1) for shape in shapes]


def double(feed: Feed) -> Feed:
    return {"y": 2 * feed["x"]}


def test_maximum_and_histogram_cover_every_value() -> None:
    data = batches(50)
    seen = observe(double, ("x", "y"), data, rows={"x", "y"}, seed=0, progress=Quiet())
    values = np.concatenate([batch.feed["x"].reshape(-1, 6) for batch in data])
    np.testing.assert_array_equal(seen["x"].maximum, np.abs(values).max(axis=0))
    np.testing.assert_array_equal(seen["y"].maximum, 2 * np.abs(values).max(axis=0))
    assert seen["x"].histogram.counts.sum() == values.size
    assert {tuple(row) for row in seen["x"].rows} <= {tuple(row) for row in values}


def test_rows_are_bounded_and_seeded() -> None:
    data = batches(3 * ROWS)
    seen = observe(double, ("x",), data, rows={"x"}, seed=1, progress=Quiet())["x"].rows
    assert len(seen) <= ROWS
    np.testing.assert_array_equal(seen, observe(double, ("x",), data, rows={"x"}, seed=1, progress=Quiet())["x"].rows)


@pytest.mark.parametrize("smoothed", [True, False])
def test_hessians_equal_one_product(*, smoothed: bool) -> None:
    data = batches(200, seed=2)
    scale = np.linspace(0.5, 2, 6).astype(np.float32) if smoothed else None
    site = Smoothing(scale=scale, affine=activation_affine(-30, 30, symmetric=False), strength=0.5, error=0)
    seen = observe(double, ("y",), data, rows={"y"}, products={"y"}, seed=0, progress=Quiet())["y"]
    values = np.concatenate([2 * batch.feed["x"].reshape(-1, 6) for batch in data]).astype(np.float64)
    assert seen.count == len(values)
    np.testing.assert_allclose(seen.product, values.T @ values, rtol=1e-4, atol=1e-2)
    divided = values if scale is None else values / scale
    found = input_hessian(seen, site)
    # Off the diagonal nothing but smoothing; on it the noise of rounding too, step² / 12 a value.
    noise = len(values) * site.affine.scale**2 / 12
    np.testing.assert_allclose(found, divided.T @ divided + noise * np.eye(6), rtol=2e-3, atol=0.3 * noise)
    back = (quantize_activation(divided, site.affine).astype(np.float64) - site.affine.zero_point) * site.affine.scale
    np.testing.assert_allclose(np.diag(found), np.diag(back.T @ back), rtol=0.02)


def test_clipping_shows_in_the_hessian() -> None:
    site = Smoothing(scale=None, affine=activation_affine(-1.5, 2, symmetric=False), strength=0, error=0)
    data = batches(ROWS // 4)
    seen = observe(double, ("y",), data, rows={"y"}, products={"y"}, seed=0, progress=Quiet())["y"]
    values = np.concatenate([2 * batch.feed["x"].reshape(-1, 6) for batch in data])
    back = (quantize_activation(values, site.affine).astype(np.float64) - site.affine.zero_point) * site.affine.scale
    found = input_hessian(seen, site)
    np.testing.assert_allclose(np.diag(found), np.diag(back.T @ back), rtol=0.1)
    assert np.all(np.diag(found) < 0.7 * np.diag(seen.product))


def test_refuses_what_is_not_finite_and_nothing_at_all() -> None:
    bad = [Batch(feed={"x": np.full((1, 2, 6), np.inf, np.float32)}, rows=1)]
    with pytest.raises(BadInputError, match="activation x"):
        observe(double, ("x",), bad, rows={"x"}, seed=0, progress=Quiet())
    with pytest.raises(BadInputError, match="no samples"):
        observe(double, ("x",), [], rows={"x"}, seed=0, progress=Quiet())
