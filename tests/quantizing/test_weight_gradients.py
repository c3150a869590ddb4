"""Gradients by weights against PyTorch on the same network, and their use by the stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.core import Batch, Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import find_weights
from edgeslim.quantizing.weight_gradients import output_moments, weight_fisher, weight_importance
from edgeslim.stages.low_rank import LowRank
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.prune_sensitivity import PruneSensitivity

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.normal(size=(6, 5)).astype(np.float32)
SECOND = RANDOM.normal(size=(4, 5)).astype(np.float32)
INPUTS = RANDOM.normal(size=(8, 1, 6)).astype(np.float32)
LABELS = (0, 3, 1, 2, 2, 0, 1, 3)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="one"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "second"], ["logits"], name="two", transB=1),
    ]
    return write_model(tmp_path / "net.onnx", nodes, {"x": ["n", 6]}, outputs=("logits",), first=FIRST, second=SECOND)


class Look:
    """A stage that measures and changes nothing."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def run(self, model: object, ctx: Context) -> StepResult:
        ctx = replace(ctx, calibration=self.batches)
        weights = find_weights(model, {}, min_elements=1)
        self.gradient = weight_importance(model, weights, ctx, "gradient", samples=99)
        self.fisher = weight_importance(model, weights, ctx, "fisher", samples=99)
        self.squares = weight_fisher(model, weights, ctx, samples=99)
        self.moments = output_moments(model, weights, ctx, samples=99)
        self.probed = output_moments(model, weights, ctx, samples=99, probes=50)
        return StepResult(model=model, changed=0)


def look(network: Path, work: Path, labels: tuple[int, ...] | None) -> Look:
    batches = [
        Batch(feed={"x": row}, rows=1, labels=() if labels is None else (labels[index],))
        for index, row in enumerate(INPUTS)
    ]
    stage = Look(batches)
    run_stage(stage, network, work, [])
    return stage


def test_of_labelled_samples(network: Path, tmp_path: Path) -> None:
    """Everything is the gradient of each sample's cross entropy times one random number."""
    found = look(network, tmp_path / "work", LABELS)
    first, second = torch.tensor(FIRST, requires_grad=True), torch.tensor(SECOND, requires_grad=True)
    squares = np.zeros(SECOND.shape)
    for number, (row, label) in enumerate(zip(INPUTS, LABELS, strict=True)):
        hidden = torch.tensor(row) @ first
        logits = torch.tanh(hidden) @ second.T
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, second)
        factor = float(torch.randn((1,), generator=torch.Generator().manual_seed(number)))
        squares += np.square(factor * gradient.numpy()) / len(INPUTS)
    assert found.squares["second"] == pytest.approx(squares, rel=1e-4)
    assert found.fisher["second"] == pytest.approx(0.5 * squares * np.square(SECOND), rel=1e-4)
    assert found.gradient["second"].shape == SECOND.shape


def test_without_labels_outputs_are_what_counts(network: Path, tmp_path: Path) -> None:
    """The last layer's gradient is the random projection itself: its second moment goes to the identity."""
    found = look(network, tmp_path / "work", None)
    assert found.moments["second"].shape == (4, 4)
    assert np.diag(found.moments["second"]).mean() == pytest.approx(1, rel=0.6)
    assert np.linalg.eigvalsh(found.moments["first"]).min() > -1e-6
    assert found.probed["second"] == pytest.approx(np.eye(4), abs=0.2)  # more projections come nearer


def test_an_output_that_nobody_reads_is_pruned_first(tmp_path: Path) -> None:
    first, second = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((16, 20), (20, 8)))
    second[10:] *= 0.01  # of the hidden values half hardly count
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "second"], ["y"], name="two"),
    ]
    path = write_model(tmp_path / "m.onnx", nodes, {"x": ["n", 16]}, first=first, second=second)
    feeds = [{"x": RANDOM.normal(size=(40, 16)).astype(np.float32)} for _ in range(4)]
    wanted = feeds[0]["x"] @ first @ second
    errors = {}
    stages = {
        "magnitude": PruneMagnitude(min_elements=1),
        "gradient": PruneSensitivity(method="gradient", scope="global", min_elements=1),
        "fisher": PruneSensitivity(method="fisher", scope="global", min_elements=1),
        "obs": PruneSensitivity(scope="global", min_elements=1),
    }
    for name, stage in stages.items():
        result, run = run_stage(stage, path, tmp_path / name, feeds)
        errors[name] = float(np.square(run(feeds[0])["y"] - wanted).sum())
        assert result.metrics["sparsity"] == pytest.approx(0.5, abs=0.01)
        if name != "magnitude":
            kept = stored(result)["first"] != 0
            assert kept[:, 10:].mean() < 0.4 < 0.5 < kept[:, :10].mean()
    assert max(errors["gradient"], errors["fisher"]) < 0.5 * errors["magnitude"]
    assert errors["obs"] < min(errors["gradient"], errors["fisher"])
    errors = {}
    for method in ("activation", "both", "fisher"):
        stage = LowRank(method=method, keep=0.6, multiple=1, min_elements=1)
        _, run = run_stage(stage, path, tmp_path / f"rank-{method}", feeds)
        errors[method] = float(np.square(run(feeds[0])["y"] - wanted).sum())
    assert errors["both"] < 0.7 * errors["activation"]


def test_refusals(network: Path, tmp_path: Path, refuses: object) -> None:
    with refuses(BadInputError, where="calibration", got="no samples"):
        run_stage(PruneSensitivity(method="fisher", min_elements=1), network, tmp_path / "work", [])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Det", ["h"], ["y"], name="strange"),
    ]
    path = write_model(tmp_path / "m.onnx", nodes, {"x": [4, 4]}, w=RANDOM.normal(size=(4, 4)).astype(np.float32))
    with refuses(BadInputError, where="graph", got="Det", expected="torch_graph"):
        feeds = [{"x": np.eye(4, dtype=np.float32)}]
        run_stage(PruneSensitivity(method="gradient", min_elements=1), path, tmp_path / "odd", feeds)
    for settings in ({"scope": "global", "method": "activation"}, {"scope": "global", "pattern": "2:4"}):
        with pytest.raises(ValueError, match="scope: global"):
            PruneSensitivity(**settings)
