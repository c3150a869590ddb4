"""Hidden neurons of exported graphs: what is found, cut and made up for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.errors import BadInputError
from edgeslim.session import open_runner
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.stages.quantize_int8 import QuantizeInt8

RANDOM = np.random.default_rng(0)
HIDDEN = 64


def normal(*shape: int) -> np.ndarray:
    return (RANDOM.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


FEEDS = [{"x": RANDOM.normal(size=(1, 12, 32)).astype(np.float32)} for _ in range(30)]
GELU = [
    helper.make_node("MatMul", ["x", "first"], ["h"]),
    helper.make_node("Add", ["first_bias", "h"], ["a"]),
    helper.make_node("Div", ["a", "root"], ["d"]),
    helper.make_node("Erf", ["d"], ["e"]),
    helper.make_node("Add", ["e", "one"], ["f"]),
    helper.make_node("Mul", ["a", "f"], ["g"]),
    helper.make_node("Mul", ["g", "half"], ["z"]),
    helper.make_node("MatMul", ["z", "second"], ["w"]),
    helper.make_node("Add", ["second_bias", "w"], ["y"]),
]


def tensors(**extra: np.ndarray) -> dict[str, np.ndarray]:
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    return {
        "first": normal(32, HIDDEN),
        "first_bias": normal(HIDDEN),
        "second": normal(HIDDEN, 16),
        "second_bias": normal(16),
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        **extra,
    }


@pytest.fixture
def gelu(tmp_path: Path) -> Path:
    return write_model(tmp_path / "net.onnx", GELU, {"x": [1, "s", 32]}, **tensors())


def error(path: Path, run: Any) -> float:
    wanted = open_runner(path)
    pairs = [(wanted(feed)["y"], run(feed)["y"]) for feed in FEEDS]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


@pytest.mark.parametrize("importance", ["obs", "activation", "taylor", "fisher"])
def test_neurons_of_a_gelu_go(gelu: Path, tmp_path: Path, importance: Any) -> None:
    result, run = run_stage(PruneStructured(keep_neurons=0.5, importance=importance), gelu, tmp_path / "work", FEEDS)
    shapes = {name.partition(".")[0]: array.shape for name, array in stored(result).items()}
    assert (shapes["first"], shapes["first_bias"], shapes["second"]) == ((32, 32), (32,), (32, 16))
    assert result.metrics == {"neurons": 64.0, "neurons_kept": 0.5}
    _, plain = run_stage(
        PruneStructured(keep_neurons=0.5, importance=importance, compensate=False), gelu, tmp_path / "plain", FEEDS
    )
    assert error(gelu, run) < 0.8 * error(gelu, plain)


def test_the_answer_is_that_of_least_squares(gelu: Path, tmp_path: Path) -> None:
    result, _ = run_stage(PruneStructured(keep_neurons=0.5, damping=1e-9), gelu, tmp_path / "work", FEEDS)
    found = {name.partition(".")[0]: array for name, array in stored(result).items()}
    original = tensors_of(gelu)
    columns = [int(np.flatnonzero((column == original["first"].T).all(axis=1))[0]) for column in found["first"].T]
    rows = np.concatenate([feed["x"][0] for feed in FEEDS]) @ original["first"] + original["first_bias"]
    hidden = rows * (1 + np.vectorize(math.erf)(rows / 2**0.5)) / 2
    wide = np.column_stack([hidden[:, columns], np.ones(len(hidden))])
    wanted = np.linalg.lstsq(wide, hidden @ original["second"] + original["second_bias"], rcond=None)[0]
    assert np.allclose(found["second"], wanted[:-1], atol=1e-3)
    assert np.allclose(found["second_bias"], wanted[-1], atol=1e-3)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def test_a_gate_and_gemms(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "gate", "gate_bias"], ["g"], transB=1),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["g", "s"], ["t"]),
        helper.make_node("Gemm", ["x", "up"], ["u"]),
        helper.make_node("Mul", ["t", "u"], ["v"]),
        helper.make_node("Gemm", ["v", "down", "bias"], ["y"], transB=1),
    ]
    path = write_model(
        tmp_path / "net.onnx",
        nodes,
        {"x": ["n", 32]},
        gate=normal(HIDDEN, 32),
        gate_bias=normal(HIDDEN),
        up=normal(32, HIDDEN),
        down=normal(16, HIDDEN),
        bias=normal(16),
    )
    feeds = [{"x": feed["x"][0]} for feed in FEEDS]
    result, run = run_stage(PruneStructured(keep_neurons=0.75), path, tmp_path / "work", feeds)
    shapes = {name.partition(".")[0]: array.shape for name, array in stored(result).items()}
    assert shapes == {"gate": (48, 32), "gate_bias": (48,), "up": (32, 48), "down": (16, 48), "bias": (16,)}
    assert run(feeds[0])["y"].shape == (12, 16)


def test_what_hangs_on_more_than_its_channel_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Softmax", ["h"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "second"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "third"], ["y"]),
        helper.make_node("ReduceMean", ["r"], ["m"]),
    ]
    weights = {"first": normal(32, 64), "second": normal(64, 64), "third": normal(64, 16)}
    path = write_model(tmp_path / "net.onnx", nodes, {"x": [1, "s", 32]}, outputs=("y", "m"), **weights)
    with pytest.raises(BadInputError, match="no hidden neurons"):
        run_stage(PruneStructured(keep_neurons=0.5), path, tmp_path / "work", FEEDS)
    nodes[4:] = [helper.make_node("MatMul", ["r", "third"], ["y"])]
    path = write_model(tmp_path / "other.onnx", nodes, {"x": [1, "s", 32]}, **weights)
    result, _ = run_stage(PruneStructured(keep_neurons=0.5), path, tmp_path / "other", FEEDS)
    assert list(result.skipped) == ["first"] or "Softmax" in result.skipped["second"]
    with pytest.raises(BadInputError, match="keep_neurons alone"):
        run_stage(PruneStructured(keep_heads=0.5), path, tmp_path / "heads", FEEDS)


def test_int8_goes_on_from_there(gelu: Path, tmp_path: Path) -> None:
    result, _ = run_stage(PruneStructured(keep_neurons=0.75), gelu, tmp_path / "work", FEEDS)
    pruned = tmp_path / "work" / "out" / "model.onnx"
    assert result.changed == 1
    quantized, run = run_stage(QuantizeInt8(), pruned, tmp_path / "int8", FEEDS)
    assert quantized.changed >= 1
    assert error(pruned, run) < 0.01


def test_zeros_of_an_earlier_step_stay(tmp_path: Path) -> None:
    found = tensors()
    found["second"][RANDOM.random(found["second"].shape) < 0.5] = 0.0
    path = write_model(tmp_path / "net.onnx", GELU, {"x": [1, "s", 32]}, **found)
    result, _ = run_stage(PruneStructured(keep_neurons=0.75), path, tmp_path / "work", FEEDS)
    second = next(array for name, array in stored(result).items() if name.startswith("second.kept"))
    rows = {tuple(row) for row in found["second"]}
    assert all(tuple(row) in rows for row in second)
