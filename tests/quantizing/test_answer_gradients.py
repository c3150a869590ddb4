"""What the model's answer depends on: gradients against Jacobians by hand, frequencies against Good and Turing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Quiet
from edgeslim.graphs.graph import load_graph
from edgeslim.metrics import l2_normalize, mean_pool
from edgeslim.quantizing.answer_gradients import measure_sensitivity, row_frequencies, task_objective
from edgeslim.task import FeatureExtraction, TextClassification
from edgeslim.torch_graph import TorchGraph

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(11, 6)).astype(np.float32)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def lookup_model(tmp_path: Path) -> TorchGraph:
    """y [1, S, 4] = Gather(table, ids) @ w"""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["last_hidden_state"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, None])]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1, None, 4])]
    tensors = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(WEIGHT, "w")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    return TorchGraph(load_graph(tmp_path / "m.onnx"))


def batch(*ids: int) -> Batch:
    return Batch(feed={"ids": np.array([ids], np.int64)}, rows=1)


def test_gradients_and_look_ups(lookup_model: TorchGraph) -> None:
    """The answer is all of y, so the gradient at ``rows`` is w r: its covariance is w wᵀ, and 1 a channel at y."""
    batches = [batch(1, 2, 2, 10)] * 400 + [batch(3, 3, -1)]
    found = measure_sensitivity(
        lookup_model,
        batches,
        FeatureExtraction(pooling="none", normalize=False),
        ["last_hidden_state"],
        {"rows": ("ids", 11)},
        samples=400,
        seed=0,
        progress=Quiet(),
    )
    assert found.samples == 400
    assert found.tokens == {"last_hidden_state": 1600, "rows": 1600}
    np.testing.assert_allclose(found.channels["last_hidden_state"] / 1600, np.ones(4), rtol=0.15)
    np.testing.assert_allclose(found.lookups["rows"].covariance / 1600, WEIGHT @ WEIGHT.T, atol=0.6)
    assert found.lookups["rows"].counts.tolist() == [0, 400, 800, 2, 0, 0, 0, 0, 0, 0, 401]


def test_row_frequencies_by_good_and_turing() -> None:
    """Seen once: two rows of ten look-ups, so a fifth is left for the three rows that were never seen."""
    shares = row_frequencies(np.array([5, 3, 1, 1, 0, 0, 0]))
    np.testing.assert_allclose(shares, [0.4, 0.24, 0.08, 0.08, 0.2 / 3, 0.2 / 3, 0.2 / 3])
    np.testing.assert_allclose(row_frequencies(np.array([3, 1])), [0.75, 0.25])
    np.testing.assert_allclose(row_frequencies(np.zeros(4, np.int64)), np.full(4, 0.25))
    np.testing.assert_allclose(row_frequencies(np.array([1, 1, 0])), [0.25, 0.25, 0.5])
    assert (row_frequencies(np.array([4, 4, 0])) > 0).all()
    np.testing.assert_allclose(row_frequencies(np.array([16, 1]), 0.5), [0.8, 0.2])
    np.testing.assert_allclose(row_frequencies(np.array([16, 1, 0]), 0), np.full(3, 1 / 3))


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
def test_the_objective_is_the_vector_that_the_task_compares(pooling: Any) -> None:
    hidden = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    feed = {"attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int64)}
    task = FeatureExtraction(pooling=pooling)
    objective = task_objective(task)
    assert objective is not None
    found = objective({"last_hidden_state": torch.from_numpy(hidden)}, feed)
    _, wanted = task.compared({"last_hidden_state": hidden}, Batch(feed=feed, rows=2))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    if pooling == "mean":
        np.testing.assert_allclose(found.numpy(), l2_normalize(mean_pool(hidden, feed["attention_mask"])), rtol=1e-5)


def test_the_objective_of_a_classifier_measures_divergence() -> None:
    """Its squared change is twice the Kullback-Leibler divergence, whatever the scale of the logits."""
    objective = task_objective(TextClassification(labels=("a", "b", "c")))
    assert objective is not None
    logits = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    moved = logits + torch.tensor([[0.01, -0.02, 0.015]], dtype=torch.float64)
    squared = (objective({"logits": moved}, {}) - objective({"logits": logits}, {})).square().sum()
    left, right = torch.log_softmax(logits, -1), torch.log_softmax(moved, -1)
    assert squared.item() == pytest.approx(2 * (left.exp() * (left - right)).sum().item(), rel=0.03)


def test_other_tasks_have_all_outputs() -> None:
    class Own(FeatureExtraction):
        def manifest(self) -> dict[str, object]:
            return {"task": "own:metric"}

    assert task_objective(Own()) is None
