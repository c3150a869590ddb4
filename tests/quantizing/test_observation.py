"""What calibration keeps: exact where it is exact, bounded where it samples."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Batch, Feed, Quiet
from edgeslim.errors import BadInputError
from edgeslim.numerics import activation_affine, quantize_activation
from edgeslim.quantizing.observation import ROWS, add_hessians, observe


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
    site = Smoothing(scale=scale, affine=activation_affine(-2, 2.5, symmetric=False), strength=0.5, error=0)
    found = add_hessians(double, {"y": site}, data, progress=Quiet())["y"]
    values = np.concatenate([2 * batch.feed["x"].reshape(-1, 6) for batch in data])
    divided = values if scale is None else values / scale
    back = (quantize_activation(divided, site.affine).astype(np.float64) - site.affine.zero_point) * site.affine.scale
    np.testing.assert_allclose(found, back.T @ back, rtol=1e-5, atol=1e-3)


def test_refuses_what_is_not_finite_and_nothing_at_all() -> None:
    bad = [Batch(feed={"x": np.full((1, 2, 6), np.inf, np.float32)}, rows=1)]
    with pytest.raises(BadInputError, match="activation x"):
        observe(double, ("x",), bad, rows={"x"}, seed=0, progress=Quiet())
    with pytest.raises(BadInputError, match="no samples"):
        observe(double, ("x",), [], rows={"x"}, seed=0, progress=Quiet())
