"""A whole build of a small classifier of pictures: folders, int8 convolutions, and what an app is told."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Report
from edgeslim.errors import BadInputError

RNG = np.random.default_rng(2)
PROJECT = """\
model = "net.onnx"
name = "shapes"
target = "board.toml"
task = "image-classification"
{labels}
[data]
file = "{data}"
calibration_samples = 12
[preprocessing]
mean = [0.25]
std = [0.5]
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'
NAMES = ("dark", "light", "mixed")


def write_net(path: Path) -> None:
    """Three classes out of 3 x 12 x 12 pixels, by two convolutions."""
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="conv_1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="conv_2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], name="head"),
    ]
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "w3": (16, 3)}
    tensors = [
        numpy_helper.from_array((0.2 * RNG.normal(size=shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [image], [logits], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(latency, "PROBES", 1)
    write_net(tmp_path / "net.onnx")
    for number in range(36):
        name = NAMES[number % 3]
        pixels = RNG.integers(0 if name != "light" else 128, 128 if name == "dark" else 256, (20, 16, 3), np.uint8)
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    (tmp_path / "board.toml").write_text(BOARD)
    (tmp_path / "edgeslim.toml").write_text(PROJECT.format(labels="", data="pictures"))
    return tmp_path


def manifest(report: Report, folder: Path) -> dict[str, Any]:
    with tarfile.open(folder / "out" / "board" / "shapes.tar.gz") as archive:
        member = next(info for info in archive if info.name.endswith("manifest.json"))
        return json.load(archive.extractfile(member))  # type: ignore[arg-type]


def test_build(project: Path) -> None:
    report = edgeslim.build(folder=project)
    assert not report.failed()
    figures = {finding.metric: finding.value for finding in report.findings}
    assert {"accuracy", "accuracy_reference", "f1", "agreement", "drop"} <= set(figures)
    assert figures["samples"] == 24
    assert figures["agreement"] > 0.9
    (step,) = (item for item in report.steps if item.name == "quantize_int8")
    assert step.metrics["conv_layers"] == 2
    task = manifest(report, project)["task"]
    assert task["labels"] == list(NAMES)
    assert task["preprocessing"] == {
        "size": [12, 12],
        "mode": "stretch",
        "resample": "bilinear",
        "channels": "rgb",
        "scale": 1 / 255,
        "mean": [0.25] * 3,
        "std": [0.5] * 3,
        "layout": "nchw",
        "dtype": "float32",
    }


def test_the_project_names_the_classes(project: Path) -> None:
    labels = 'labels = ["mixed", "light", "dark"]'
    (project / "edgeslim.toml").write_text(PROJECT.format(labels=labels, data="pictures"))
    report = edgeslim.build(folder=project)
    assert manifest(report, project)["task"]["labels"] == ["mixed", "light", "dark"]


def test_arrays_are_taken_as_they_are(project: Path) -> None:
    values = RNG.normal(size=(30, 3, 12, 12)).astype(np.float32)
    np.savez(project / "arrays.npz", image=values, label=np.arange(30) % 3)
    text = PROJECT.format(labels="", data="arrays.npz").partition("[preprocessing]")[0]
    (project / "edgeslim.toml").write_text(text)
    report = edgeslim.build(folder=project)
    assert not report.failed()
    assert manifest(report, project)["task"]["preprocessing"] is None


@pytest.mark.parametrize(
    ("labels", "data", "got"),
    [
        ('labels = ["dark", "light"]', "pictures", 'unknown label "mixed"'),
        ('labels = ["dark", "light", "mixed", "none"]', "pictures", "3 classes\n  expected: 4: dark, light"),
        ("", "picture", 'hint: did you mean "pictures"?'),
        ("", "net.onnx", 'no pictures in a ".onnx" file'),
    ],
)
def test_refuses(project: Path, labels: str, data: str, got: str) -> None:
    (project / "edgeslim.toml").write_text(PROJECT.format(labels=labels, data=data))
    with pytest.raises(BadInputError) as caught:
        edgeslim.build(folder=project)
    assert got in str(caught.value)
    assert not (project / "out").exists()


def test_a_folder_for_another_task(project: Path) -> None:
    text = PROJECT.format(labels="", data="pictures").partition("[preprocessing]")[0]
    (project / "edgeslim.toml").write_text(text.replace("image-classification", "feature-extraction"))
    with pytest.raises(BadInputError, match='task = "image-classification"'):
        edgeslim.build(folder=project)


@pytest.mark.slow
def test_a_transformers_model(project: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    transformers.ViTForImageClassification(config).eval().save_pretrained(project / "vit")
    processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (project / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    text = PROJECT.format(labels="", data="pictures").partition("[preprocessing]")[0]
    text = text.replace('"net.onnx"', '"vit"').replace('task = "image-classification"\n', "")
    (project / "edgeslim.toml").write_text(text)
    report = edgeslim.build(folder=project)
    assert not report.failed()
    task = manifest(report, project)["task"]
    assert task["labels"] == list(NAMES)
    assert (task["preprocessing"]["resample"], task["preprocessing"]["std"]) == ("bicubic", [0.25] * 3)
