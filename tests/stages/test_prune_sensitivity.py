"""Pruning by sensitivity on graphs, measured through ONNX Runtime on data that wasn't calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.session import open_runner
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.prune_sensitivity import PruneSensitivity

RANDOM = np.random.default_rng(0)
MIXING = RANDOM.normal(size=(40, 4))


def samples(count: int) -> np.ndarray:
    """Correlated rows of 40 values of different sizes."""
    rows = RANDOM.normal(size=(count, 40)) + RANDOM.normal(size=(count, 4)) @ MIXING.T
    return (rows * np.geomspace(0.2, 3, 40)).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    weight = RANDOM.normal(size=(40, 48)).astype(np.float32)
    return write_model(
        tmp_path / "net.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")], {"x": ["n", 40]}, w=weight
    )


def held_out_error(path: Path, run: object) -> float:
    feed = {"x": samples(500)}
    wanted = open_runner(path)(feed)["y"]
    return float(np.square(run(feed)["y"] - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("pattern", ["none", "2:4"])
def test_each_way_beats_the_simpler_one(network: Path, tmp_path: Path, pattern: str) -> None:
    feeds = [{"x": samples(400)}]
    stages = {
        "magnitude": PruneMagnitude(pattern=pattern),
        "activation": PruneSensitivity(method="activation", pattern=pattern),
        "obs": PruneSensitivity(pattern=pattern, refit=False),
        "refit": PruneSensitivity(pattern=pattern),
    }
    errors = {}
    for name, stage in stages.items():
        result, run = run_stage(stage, network, tmp_path / name, feeds)
        errors[name] = held_out_error(network, run)
        weight = stored(result)["w"]
        assert result.metrics["sparsity"] == 0.5
        assert (weight == 0).sum() == weight.size // 2
        if pattern != "none":
            assert ((weight.reshape(10, 4, 48) != 0).sum(axis=1) == 2).all()
    assert errors["refit"] < errors["obs"] < errors["activation"] < errors["magnitude"]


def test_activation_by_hand(tmp_path: Path) -> None:
    # ‖x‖ is 3 and 1: |w|·‖x‖ is 3, 2 in the first output and 6, 4 in the second.
    path = write_model(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 2]},
        w=np.array([[1, 2], [2, 4]], np.float32),
    )  # fmt: skip
    feeds = [{"x": np.array([[3, 0], [0, 1]], np.float32)}]
    result, _ = run_stage(PruneSensitivity(method="activation", min_elements=1), path, tmp_path / "work", feeds)
    assert stored(result)["w"].tolist() == [[1, 2], [0, 0]]


def test_a_convolution(tmp_path: Path) -> None:
    weight = RANDOM.normal(size=(16, 8, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="conv")]
    path = write_model(tmp_path / "c.onnx", nodes, {"x": ["n", 8, 12, 12]}, w=weight)
    smooth = np.cumsum(RANDOM.normal(size=(6, 8, 12, 12)), axis=3).astype(np.float32)  # neighbours are alike
    feeds = [{"x": smooth[:4]}]
    wanted = open_runner(path)({"x": smooth[4:]})["y"]
    errors = []
    for number, stage in enumerate((PruneMagnitude(), PruneSensitivity())):
        _, run = run_stage(stage, path, tmp_path / str(number), feeds)
        errors.append(float(np.square(run({"x": smooth[4:]})["y"] - wanted).sum()))
    assert errors[1] < 0.7 * errors[0]


def test_refusals(network: Path, tmp_path: Path, refuses: object) -> None:
    with refuses(BadInputError, where="calibration", got="no samples"):
        run_stage(PruneSensitivity(), network, tmp_path / "work", [])
    for settings in ({"sparsity": 0.0}, {"damping": 0.0}, {"pattern": "9"}, {"min_elements": 0}):
        with refuses(BadInputError, where="recipe", got=next(iter(settings))):
            parse_fields(PruneSensitivity, settings, "recipe")
