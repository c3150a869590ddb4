"""Graphs for one shape alone: only constants are left, outputs stay, and what can't be frozen is said."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Batch
from edgeslim.errors import BadInputError
from edgeslim.graphs.freeze import fixed_length, freeze_shapes
from edgeslim.graphs.graph import load_graph
from edgeslim.session import open_runner

RNG = np.random.default_rng(4)


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """``y = scores [batch, length, 8] @ w [8, 4] * mask``, reshaped by computed sizes; the mask is int64."""
    nodes = [
        helper.make_node("Shape", ["scores"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("MatMul", ["scores", "w"], ["product"], name="linear"),
        helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["product", "column"], ["masked"]),
        helper.make_node("Reshape", ["masked", "target"], ["y"]),
    ]
    sizes = {"first": np.array([0]), "rest": np.array([-1]), "last": np.array([2])}
    tensors = {"w": RNG.normal(size=(8, 4)).astype(np.float32), **sizes}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", 8]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "flat"])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def sample(length: int = 6, rows: int = 1) -> Batch:
    scores = RNG.normal(size=(rows, length, 8)).astype(np.float32)
    return Batch(feed={"scores": scores, "mask": np.ones((rows, length), np.int64)}, rows=rows)


def test_only_constants_are_left(two_inputs: Path, tmp_path: Path) -> None:
    samples = [sample() for _ in range(3)]
    metrics = freeze_shapes(two_inputs, samples, tmp_path / "frozen")
    assert metrics["frozen_max_abs_diff"] == 0
    path = tmp_path / "frozen" / "model.onnx"
    model = load_graph(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert all(isinstance(dim, int) for dim in value.shape.dims), value
    assert "Shape" not in {node.op_type for node in model.graph}, "sizes are known"
    free, frozen = open_runner(two_inputs), open_runner(path)
    for item in samples:
        np.testing.assert_array_equal(frozen(item.feed)["y"], free(item.feed)["y"])
    assert [item["shape"] for item in frozen.signature()["inputs"]] == [[1, 6, 8], [1, 6]]
    assert frozen.signature()["outputs"][0]["shape"] == [1, 24]


def test_refuses(two_inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"input scores: samples of the shapes \[1, 5, 8\], \[1, 6, 8\]"):
        freeze_shapes(two_inputs, [sample(6), sample(5)], tmp_path / "a")
    other = Batch(feed={"scores": np.zeros((1, 6, 7), np.float32), "mask": np.ones((1, 6), np.int64)}, rows=1)
    with pytest.raises(BadInputError, match=r"samples of shape \[1, 6, 7\]"):
        freeze_shapes(two_inputs, [other], tmp_path / "b")


def build(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[edgeslim.Report, dict[str, Any]]:
    monkeypatch.setattr(latency, "PROBES", 1)
    (folder / "edgeslim.toml").write_text('target = "android-arm64"\nname = "net"\n' + text)
    report = edgeslim.build(folder=folder)
    assert not report.failed()
    with zipfile.ZipFile(folder / "out" / "android-arm64" / "net.aar") as archive:
        manifest = json.loads(archive.read("assets/edgeslim/net/manifest.json"))
    return report, manifest


@pytest.mark.parametrize("fixed", [True, False])
def test_several_inputs_of_several_types(two_inputs: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool) -> None:
    folder = two_inputs.parent
    scores = RNG.normal(size=(24, 6, 8)).astype(np.float32)
    np.savez(folder / "data.npz", scores=scores, mask=RNG.integers(0, 2, (24, 6)))
    text = 'model = "two.onnx"\n[data]\nfile = "data.npz"\n' + ("[export]\nfixed_shapes = true\n" if fixed else "")
    text += '[[steps]]\nuse = "quantize_int8"\nmin_elements = 1\n'
    report, manifest = build(folder, text, monkeypatch)
    assert [step.changed for step in report.steps if step.name == "quantize_int8"] == [1]
    inputs = {item["name"]: (item["type"], item["shape"]) for item in manifest["signature"]["inputs"]}
    batch, length = (1, 6) if fixed else (None, None)
    assert inputs == {"scores": ("tensor(float)", [batch, length, 8]), "mask": ("tensor(int64)", [batch, length])}


def test_own_code_with_two_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_pair.py").write_text(
        "import torch\n"
        "class Pair(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.table, self.linear = torch.nn.Embedding(50, 32), torch.nn.Linear(32, 40)\n"
        "    def forward(self, ids, scale):\n"
        "        return self.linear(self.table(ids) * scale[:, None])\n"
        "def make():\n"
        "    return Pair(), {'ids': torch.tensor([1]), 'scale': torch.ones(1)}\n"
    )
    np.savez(tmp_path / "data.npz", ids=np.arange(40) % 50, scale=RNG.uniform(0.5, 1, 40).astype(np.float32))
    _, manifest = build(tmp_path, 'model = "own_pair:make"\n[data]\nfile = "data.npz"\n', monkeypatch)
    assert [item["type"] for item in manifest["signature"]["inputs"]] == ["tensor(int64)", "tensor(float)"]
    sys.modules.pop("own_pair")


def test_texts_of_a_fixed_length(
    tiny_bert: Path, text_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'model = "{tiny_bert}"\n[data]\nfile = "{text_files.txt}"\n[export]\nfixed_length = 24\n'
    report, manifest = build(tmp_path, text, monkeypatch)
    assert {tuple(item["shape"]) for item in manifest["signature"]["inputs"]} == {(1, 24)}
    assert manifest["signature"]["outputs"][0]["shape"][:2] == [1, 24]
    assert manifest["tokenizer"] == {"folder": "tokenizer", "max_length": 24, "pad": True}
    figures = {finding.metric: finding.value for finding in report.findings}
    assert figures["cosine_mean"] > 0.97
    (step,) = (step for step in report.steps if step.name == "export")
    assert step.metrics["frozen_max_abs_diff"] < 1e-4


def test_fixed_length(two_inputs: Path) -> None:
    assert fixed_length(two_inputs) is None
