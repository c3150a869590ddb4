"""``edgeslim check`` on a package that classifies pictures: its manifest says what is done to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Report
from edgeslim.recheck import CheckOptions, check_package

PROJECT = """\
model = "net.onnx"
target = "board.toml"
task = "image-classification"
recipe = "recipe.toml"
labels = ["red", "green", "blue"]
[data]
file = "pictures"
calibration_samples = 6
[preprocessing]
mode = "crop"
shortest_edge = 10
mean = [0.25]
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class is the brightest channel: pooled over the picture, as the model does."""
    monkeypatch.setattr(latency, "PROBES", 1)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", [image], [logits], [weights])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    generator = np.random.default_rng(1)
    for number in range(24):
        pixels = generator.integers(0, 100, (12, 16, 3), np.uint8)
        pixels[..., number % 3] += 100
        folder = tmp_path / "pictures" / ("red", "green", "blue")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "board.toml").write_text(BOARD, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text("steps = []\n", encoding="utf-8")
    (tmp_path / "edgeslim.toml").write_text(PROJECT, encoding="utf-8")
    return tmp_path


def figures(report: Report) -> dict[str, float | None]:
    assert not report.failed()
    return {finding.metric: finding.value for finding in report.findings}


def test_pictures(project: Path) -> None:
    built = edgeslim.build(folder=project)
    pictures, package = str(project / "pictures"), built.artifact.path
    held_out = check_package(CheckOptions(package=package, data=pictures))
    assert (figures(held_out)["accuracy"], figures(held_out)["samples"]) == (1.0, 18.0)
    assert "is what the build split" in held_out.notes[0]

    for path in (project / "pictures").rglob("*.png"):  # now it is another set, and all of it counts
        if int(path.stem) >= 5:
            path.unlink()
    other = check_package(CheckOptions(package=package, data=pictures))
    assert (figures(other)["accuracy"], figures(other)["samples"]) == (1.0, 5.0)

    compared = check_package(CheckOptions(package=package, data=pictures, reference=str(project / "net.onnx")))
    found = figures(compared)
    assert (found["drop"], found["agreement"], found["accuracy_reference"]) == (0.0, 1.0, 1.0)

    made_up = check_package(CheckOptions(package=package))
    assert made_up.notes == ("no data given: run on one made-up input (--data FILE)",)
    assert "accuracy" not in figures(made_up)
