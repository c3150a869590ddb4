"""Second moments against NumPy on all rows at once; weights exchanged between runs against a model made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeslim.core import Batch, Quiet
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph
from edgeslim.graphs.weight_probe import WeightProbe
from edgeslim.quantizing.block_sites import find_matrices
from edgeslim.quantizing.moments import collect_moments
from edgeslim.session import open_runner

RNG = np.random.default_rng(0)


def test_equals_numpy_whatever_the_lengths() -> None:
    samples = [RNG.normal(size=(1, length, 8)).astype(np.float32) for length in (900, 3, 1500, 40)]
    batches = [Batch(feed={"x": sample}, rows=1) for sample in samples]
    found = collect_moments(lambda feed: {"y": 2 * feed["x"]}, ["x", "y"], batches, progress=Quiet())
    rows = np.concatenate([sample[0] for sample in samples]).astype(np.float64)
    x, y = found["x"], found["y"]
    np.testing.assert_allclose(x.second, rows.T @ rows, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(x.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(x.centered() / (len(rows) - 1), np.cov(rows.T), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.second, 4 * x.second, rtol=1e-6)
    assert x.count == len(rows)
    np.testing.assert_allclose(y.divided(np.full(8, 2.0)).centered(), x.centered(), rtol=1e-6)


def test_bad_calibration() -> None:
    with pytest.raises(BadInputError, match="no samples"):
        collect_moments(lambda feed: feed, ["x"], [], progress=Quiet())
    batch = Batch(feed={"x": np.array([[np.inf, 1.0]])}, rows=1)
    with pytest.raises(BadInputError, match="activation x"):
        collect_moments(lambda feed: feed, ["x"], [batch], progress=Quiet())


def test_a_probe_runs_with_other_weights_and_leaves_the_model_alone(mlp_onnx: Path, tmp_path: Path) -> None:
    model = load_graph(mlp_onnx)
    before = ir.to_proto(model).SerializeToString()
    matrices = find_matrices(model.graph, embeddings=True, min_elements=1, keep_float=(), skipped={})
    probe = WeightProbe(model, matrices, tmp_path / "probe")
    assert ir.to_proto(model).SerializeToString() == before
    feed = {"x": RNG.normal(size=(5, 16)).astype(np.float32)}
    np.testing.assert_allclose(probe.with_weights({})(feed)["y"], open_runner(mlp_onnx)(feed)["y"], rtol=1e-5)
    first, second = matrices
    hidden = second.linears[0].source_name
    given = probe.with_weights({first.name: 0 * first.weight}, ["x", hidden])(feed)
    assert list(given) == [hidden]  # what the graph takes, it doesn't give
    bias = model.graph.initializers["bias"].const_value
    assert bias is not None
    np.testing.assert_allclose(given[hidden], np.tile(np.maximum(bias.numpy(), 0), (5, 1)), rtol=1e-6)
    assert not np.any(probe.with_weights({second.name: 0 * second.weight})(feed)["y"])
