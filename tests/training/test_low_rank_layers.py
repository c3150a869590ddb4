"""Linear layers of torch models in two: as on a graph, on disk and back, trained on, and what stays whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from small_graphs import write_model
from test_structured import again, bert, context, run, texts  # noqa: F401
from torch import nn

from edgeslim.core import Batch, Context, TrainingData
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.stages.distill import Distill
from edgeslim.stages.low_rank import LowRank
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.target import load_target
from edgeslim.task import Classification
from edgeslim.training.low_rank_layers import find_linears, linear_fisher, linear_output_moments
from edgeslim.training.torch_model import LowRankLinear, TorchModel

SMALL = {"multiple": 2, "min_elements": 1}


class Net(nn.Module):
    """64 inputs, of which some count more than others, to 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.three = nn.Linear(64, 48), nn.Linear(48, 40, bias=False), nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))))


def rows(count: int = 96) -> list[Batch]:
    random = np.random.default_rng(1)
    values = (random.normal(size=(count, 64)) @ np.diag(np.geomspace(3, 0.05, 64))).astype(np.float32)
    return [Batch(feed={"x": row[None]}, rows=1, labels=(int(np.argmax(row[:5])),)) for row in values]


def labelled(work: Path, batches: list[Batch], **more: Any) -> Context:
    return replace(context(work, batches), task=Classification(), reference=lambda feed: feed, **more)


def as_graph(net: Net, path: Path) -> Path:
    nodes, tensors, last = [], {}, "x"
    for number, layer in enumerate((net.one, net.two, net.three)):
        tensors[f"w{number}"] = layer.weight.detach().numpy()
        operands, out = [last, f"w{number}"], f"h{number}" if number < 2 else "logits"
        if layer.bias is not None:
            tensors[f"b{number}"] = layer.bias.detach().numpy()
            operands.append(f"b{number}")
        nodes.append(helper.make_node("Gemm", operands, [out], transB=1, name=f"layer{number}"))
        if number < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{number}"]))
        last = f"r{number}"
    return write_model(path, nodes, {"x": ["n", 64]}, outputs=("logits",), **tensors)


@pytest.mark.parametrize("method", ["plain", "activation"])
def test_a_module_is_divided_as_its_graph_is(tmp_path: Path, method: Any) -> None:
    net, batches = Net().eval(), rows()
    path = as_graph(net, tmp_path / "net.onnx")
    stage = LowRank(method=method, keep=0.4, **SMALL)
    ctx = labelled(tmp_path, batches, target=load_target("android-arm64"))
    graph = stage.run(load_graph(path), ctx)
    module = stage.run(TorchModel(module=net), ctx)
    assert module.metrics == pytest.approx(graph.metrics)
    assert module.metrics["kept"] <= 0.4
    assert module.changed == graph.changed == len(module.model.factors) >= 2
    made, _ = save_graph(graph.model, tmp_path / "made")
    x = np.concatenate([batch.feed["x"] for batch in rows(20)])
    wanted = open_runner(made)({"x": x})["logits"]
    with torch.no_grad():
        got = module.model.module(torch.from_numpy(x)).numpy()
    assert np.abs(open_runner(path)({"x": x})["logits"] - wanted).max() > 1e-3
    assert got == pytest.approx(wanted, abs=2e-4)


def test_gradients_of_labelled_samples_one_by_one(tmp_path: Path) -> None:
    net, batches = Net().eval(), rows(20)
    fisher, moment = np.zeros(64), np.zeros((48, 48))
    for batch in batches:
        net.zero_grad()
        answer = net(torch.from_numpy(batch.feed["x"]))
        nn.functional.cross_entropy(answer, torch.tensor(batch.labels)).backward()
        fisher += net.one.weight.grad.double().square().sum(0).numpy() / len(batches)
        output = net.one.bias.grad.double().numpy()  # of a single row the bias has the output's gradient
        moment += np.outer(output, output) / len(batches)
    model, ctx = TorchModel(module=net), labelled(tmp_path, batches)
    assert linear_fisher(model, ["one"], ctx, samples=99)["one"] == pytest.approx(fisher, rel=1e-4)
    matrices = find_linears(model, {}, min_elements=1, keep=())
    found = linear_output_moments(model, matrices, ctx, samples=99, probes=3)
    assert found["one"] == pytest.approx(moment, rel=1e-3, abs=1e-7)
    assert set(found) == {"one", "two", "three"}


def test_projections_of_answers_without_labels(bert: TorchModel, tmp_path: Path) -> None:  # noqa: F811
    """Where gradients count, an error of the answer costs less than where weights alone do."""
    off = {}
    for method in ("plain", "both", "fisher"):
        result = LowRank(method=method, keep=0.6, **SMALL).run(bert.copied(), context(tmp_path, texts(64)))
        off[method] = float((run(result.model) - run(bert)).square().sum())
    assert off["both"] < off["plain"]
    assert off["fisher"] > 0


def test_factors_come_back_from_disk_and_are_trained_as_two(bert: TorchModel, tmp_path: Path) -> None:  # noqa: F811
    ctx = context(tmp_path, texts())
    result = LowRank(keep=0.4, **SMALL).run(bert.copied(), ctx)
    loaded = again(result.model, bert, tmp_path / "disk")
    assert torch.equal(run(loaded), run(result.model))
    data = TrainingData(training=tuple(texts(16)), validation=tuple(texts(8)), padding={})
    start = loaded.copied()
    start.module.requires_grad_(requires_grad=True)
    trained = Distill(epochs=10, batch_size=8, learning_rate=2e-3, sparsity=0.02, prune_end=0.0).run(
        start, replace(ctx, training=data, teacher=bert.frozen())
    )
    assert trained.model.factors == loaded.factors
    for name, rank in loaded.factors.items():
        layer = trained.model.module.get_submodule(name)
        assert isinstance(layer, LowRankLinear)
        assert layer[0].out_features == layer[1].in_features == rank
        before = loaded.module.get_submodule(name)
        assert all(not torch.equal(layer[side].weight, before[side].weight) for side in (0, 1))
        assert f"{name}.1.weight" in trained.model.masks  # a factor is pruned like any other layer


def test_after_heads_and_neurons_went(bert: TorchModel, tmp_path: Path) -> None:  # noqa: F811
    ctx = context(tmp_path, texts())
    pruned = PruneStructured(keep_heads=0.5, keep_neurons=0.5).run(bert.copied(), ctx).model
    divided = LowRank(keep=0.7, **SMALL).run(pruned, ctx).model
    assert divided.factors
    assert torch.equal(run(again(divided, bert, tmp_path / "disk")), run(divided))
    with pytest.raises(BadInputError, match="factorized"):
        PruneStructured(keep_neurons=0.5).run(divided, ctx)


class Mixed(Net):
    """What has to stay whole, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(48, 4)
        self.again, self.other = nn.Linear(48, 40, bias=False), nn.Linear(48, 40)
        self.again.weight = self.two.weight


def test_what_stays_whole_and_why(tmp_path: Path) -> None:
    ctx = labelled(tmp_path, rows(8))
    stage = LowRank(keep=0.6, min_elements=500, multiple=2, keep_dense=("kept*",))
    module = Mixed().eval()
    module.kept = nn.Linear(64, 48)
    result = stage.run(TorchModel(module=module), ctx)
    assert list(result.model.factors) == ["one"]
    assert result.skipped["kept"] == "kept by the recipe"
    assert result.skipped["three"] == "it has 200 elements, fewer than min_elements = 500"
    assert result.skipped["two"] == result.skipped["again"] == "its weight is another layer's, too"
    assert result.skipped["other"] == "no calibration sample reaches it"
    assert "inside a MultiheadAttention, which reads its weight" in result.skipped["attention.out_proj"]
    once_more = LowRank(keep=0.6, min_elements=1, multiple=1).run(result.model, ctx)
    assert once_more.skipped["one.0"] == once_more.skipped["one.1"] == "an earlier step divided it"


def test_zeros_are_not_factorized_away(tmp_path: Path) -> None:
    ctx = labelled(tmp_path, rows(8))
    pruned = PruneMagnitude(sparsity=0.5, min_elements=1).run(TorchModel(module=Net().eval()), ctx).model
    with pytest.raises(BadInputError, match="its factors would have no zeros"):
        LowRank(keep=0.6, **SMALL).run(pruned.copied(), ctx)
    few = PruneMagnitude(sparsity=0.1, min_elements=1).run(TorchModel(module=Net().eval()), ctx).model
    result = LowRank(keep=0.6, **SMALL).run(few, ctx)
    assert result.changed == 0
    assert set(result.skipped.values()) == {"an earlier step pruned some of it"}
