"""Magnitude pruning of graphs: what is stored, what runs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import helper
from small_graphs import run_stage, stored, write_model
from torch import nn

from edgeslim.codec import Segment, encode_container
from edgeslim.core import Quiet
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import save_graph
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.training.masks import check_masks
from edgeslim.training.torch_model import TorchModel

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.normal(size=(32, 64)).astype(np.float32)
SECOND = (RANDOM.normal(size=(48, 64)) * 0.1).astype(np.float32)
FEEDS = [{"x": RANDOM.normal(size=(9, 32)).astype(np.float32)}]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="one"),
        helper.make_node("Gemm", ["h", "second", "bias"], ["y"], name="two", transB=1),
    ]
    tensors = {"first": FIRST, "second": SECOND, "bias": np.ones(48, np.float32)}
    return write_model(tmp_path / "net.onnx", nodes, {"x": ["n", 32]}, **tensors)


def test_each_layer_keeps_its_largest(network: Path, tmp_path: Path) -> None:
    result, run = run_stage(PruneMagnitude(sparsity=0.75), network, tmp_path / "work", FEEDS)
    for name, before in (("first", FIRST), ("second", SECOND)):
        bound = np.sort(np.abs(before).ravel())[before.size * 3 // 4]
        assert np.array_equal(stored(result)[name], np.where(np.abs(before) >= bound, before, 0))
    expected = (FEEDS[0]["x"] @ stored(result)["first"]) @ stored(result)["second"].T + 1
    assert run(FEEDS[0])["y"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert result.metrics["sparsity"] == 0.75
    assert result.changed == 2


def test_scopes(network: Path, tmp_path: Path) -> None:
    def shares(work: str, **settings: object) -> list[float]:
        tensors = stored(run_stage(PruneMagnitude(**settings), network, tmp_path / work, FEEDS)[0])
        return [float(np.mean(tensors[name] == 0)) for name in ("first", "second")]

    assert shares("layer") == [0.5, 0.5]
    assert shares("global", scope="global") == pytest.approx([0.5, 0.5], abs=0.02)  # scales are divided out
    plain = shares("plain", scope="global", normalize=False)
    assert plain[0] < 0.15 < 0.7 < plain[1]
    # Of a normal distribution 31.7 % lies beyond one standard deviation.
    assert shares("threshold", threshold=1.0) == pytest.approx([0.683, 0.683], abs=0.03)


def test_two_of_four_inputs_in_either_layout(network: Path, tmp_path: Path) -> None:
    tensors = stored(run_stage(PruneMagnitude(pattern="2:4"), network, tmp_path / "work", FEEDS)[0])
    assert ((tensors["first"].reshape(8, 4, 64) != 0).sum(axis=1) == 2).all()
    assert ((tensors["second"].reshape(48, 16, 4) != 0).sum(axis=2) == 2).all()
    smallest = np.sort(np.abs(FIRST).reshape(8, 4, 64), axis=1)[:, :2].sum()
    assert np.abs(FIRST - tensors["first"]).sum() == pytest.approx(smallest, rel=1e-5)


def test_a_pattern_that_doesnt_fit_is_told(tmp_path: Path) -> None:
    weight = RANDOM.normal(size=(30, 40)).astype(np.float32)
    path = write_model(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 30]}, w=weight)
    result, _ = run_stage(PruneMagnitude(pattern="2:4"), path, tmp_path / "work", [])
    assert result.changed == 0
    assert result.skipped == {"w": "its 30 inputs aren't a multiple of 4"}


def test_zeros_survive_int8_and_code_small(network: Path, tmp_path: Path) -> None:
    result, _ = run_stage(PruneMagnitude(sparsity=0.9), network, tmp_path / "work", FEEDS)
    pruned, _ = save_graph(result.model, tmp_path / "pruned")
    zeros = stored(result)["first"] == 0
    quantized, _ = run_stage(QuantizeInt8(), pruned, tmp_path / "int8", FEEDS)
    values = stored(quantized)["one.weight_int8"]
    assert (values[zeros] == 0).all()
    coded = encode_container([Segment(name="w", data=values, dtype="int8", shape=values.shape)])
    assert len(coded) < 0.3 * values.size


@pytest.mark.parametrize("settings", [{}, {"pattern": "2:4"}, {"scope": "global", "sparsity": 0.7}])
def test_a_torch_model_gets_the_same_zeros_as_its_graph(network: Path, tmp_path: Path, settings: dict) -> None:
    """Linear layers hold [out, in], the graph's MatMul [in, out]."""
    module = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 48))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(FIRST.T))
        module[1].weight.copy_(torch.tensor(SECOND))
    stage = PruneMagnitude(**settings)
    expected = stored(run_stage(stage, network, tmp_path / "work", FEEDS)[0])
    result = stage.run(TorchModel(module=module), SimpleNamespace(progress=Quiet()))
    found = result.model.module
    assert np.array_equal(found[0].weight.detach().numpy().T, expected["first"])
    assert np.array_equal(found[1].weight.detach().numpy(), expected["second"])
    assert np.array_equal(result.model.masks["0.weight"].numpy().T, expected["first"] != 0)
    check_masks(found, {}, result.model.masks, "prune_magnitude")


def test_masks_of_earlier_stages_hold_and_the_rest_is_told(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv1d(8, 16, 4), nn.Linear(30, 40), nn.Linear(8, 8), nn.Bilinear(8, 8, 8))
    earlier = {"1.weight": torch.zeros(40, 30, dtype=torch.bool)}
    stage = PruneMagnitude(pattern="2:4", min_elements=100, keep=("0",))
    result = stage.run(TorchModel(module=module, masks=earlier), SimpleNamespace(progress=Quiet()))
    assert result.changed == 0
    assert result.skipped["0.weight"] == "kept by the recipe"
    assert "30 inputs aren't a multiple of 4" in result.skipped["1.weight"]
    assert "fewer than min_elements" in result.skipped["2.weight"]
    assert "Bilinear" in result.skipped["3.weight"]
    assert not module[1].weight.any()


def test_refusals(refuses: object) -> None:
    for settings, got in (
        ({"sparsity": 1.0}, "sparsity: 1.0"),
        ({"threshold": -1.0}, "threshold"),
        ({"pattern": "4:2"}, "pattern"),
        ({"min_elements": 0}, "min_elements"),
    ):
        with refuses(BadInputError, where="recipe", got=got):
            parse_fields(PruneMagnitude, settings, "recipe")
