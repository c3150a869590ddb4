from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeslim.errors import BadInputError
from edgeslim.session import RunnerOnDemand, close_runner, max_difference, open_runner, runtime_version

FEED = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)}


def test_a_runner_is_called_like_a_function(mlp_onnx: Path) -> None:
    runner = open_runner(mlp_onnx)
    assert (runner.inputs, runner.outputs) == (("x",), ("y",))
    generator = np.random.default_rng(5)
    first = generator.normal(0, 0.25, (16, 96)).astype(np.float32)
    bias = generator.normal(0, 0.1, (96,)).astype(np.float32)
    second = generator.normal(0, 0.1, (96, 16)).astype(np.float32)
    made = runner(FEED)
    assert list(made) == ["y"]
    np.testing.assert_allclose(made["y"], np.maximum(FEED["x"] @ first + bias, 0) @ second, atol=1e-5)


def test_inputs_that_the_graph_lacks_are_left_out(mlp_onnx: Path) -> None:
    more = {**FEED, "attention_mask": np.ones((2, 4), np.int64)}
    np.testing.assert_array_equal(open_runner(mlp_onnx)(more)["y"], open_runner(mlp_onnx)(FEED)["y"])


def test_a_runner_on_demand_opens_the_graph_when_it_is_called(mlp_onnx: Path, tmp_path: Path) -> None:
    wanted = open_runner(mlp_onnx)(FEED)["y"]
    runner = RunnerOnDemand(mlp_onnx)
    np.testing.assert_array_equal(runner(FEED)["y"], wanted)
    close_runner(runner)
    np.testing.assert_array_equal(runner(FEED)["y"], wanted)
    close_runner(open_runner(mlp_onnx))  # which stays as it is
    gone = RunnerOnDemand(tmp_path / "missing.onnx")
    with pytest.raises(BadInputError, match=r"missing\.onnx"):
        gone(FEED)


def test_signature(mlp_onnx: Path) -> None:
    assert open_runner(mlp_onnx).signature() == {
        "inputs": [{"name": "x", "type": "tensor(float)", "shape": [None, 16]}],
        "outputs": [{"name": "y", "type": "tensor(float)", "shape": [None, 16]}],
    }


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_change_nothing_but_time(mlp_external: Path, threads: int) -> None:
    np.testing.assert_allclose(
        open_runner(mlp_external, threads=threads)(FEED)["y"], open_runner(mlp_external)(FEED)["y"], atol=1e-6
    )


def test_the_optimized_graph(mlp_onnx: Path, tmp_path: Path) -> None:
    open_runner(mlp_onnx, optimized=tmp_path / "optimized.onnx")
    assert onnx.load(tmp_path / "optimized.onnx").graph.node


def test_telemetry_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_runtime_version() -> None:
    import onnxruntime

    assert runtime_version() == onnxruntime.__version__


def unknown_operator() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Levitate", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("content", "got"),
    [(None, "can't open it"), (b"", "can't open it"), (b"no model", "can't open it"), (unknown_operator(), "Levitate")],
    ids=["missing", "empty", "text", "operator"],
)
def test_models_that_the_runtime_refuses(tmp_path: Path, content: bytes | None, got: str, refuses: Any) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with refuses(BadInputError, where=str(path), got=got, expected="a valid ONNX model"):
        open_runner(path)


@pytest.mark.parametrize(
    ("left", "right", "difference", "cosine"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0, 1.0),
        ([[3.0, 4.0]], [[4.0, 3.0]], 1.0, 24 / 25),
        ([[1.0, 0.0]], [[-1.0, 0.0]], 2.0, -1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 1.0),
        ([], [], 0.0, 1.0),
        ([1, 2], [1, 3], 1.0, 7 / np.sqrt(50)),
        ([1.0, 2.0], [1.0], np.inf, 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], np.inf, 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf, 0.0),
        ([0.0, 1.0], [0.0, np.inf], np.inf, 0.0),
        ([-np.inf, np.inf], [-np.inf, -np.inf], np.inf, 0.0),
        ([-np.inf, 1.0, 0.0], [-np.inf, 1.0, 1.0], 1.0, np.sqrt(0.5)),
        ([0.0, 0.0], [0.0, 1.0], 1.0, 0.0),
    ],
)
def test_max_difference(left: list[float], right: list[float], difference: float, cosine: float) -> None:
    found = max_difference({"a": np.array(left)}, {"b": np.array(right)})
    assert found == (pytest.approx(difference), pytest.approx(cosine))


def test_max_difference_takes_the_worst_of_the_outputs() -> None:
    ones, zeros = np.ones(2), np.array([1.0, 0.0])
    assert max_difference({"a": ones, "b": ones}, {"a": ones, "b": zeros}) == (1.0, pytest.approx(np.sqrt(0.5)))
    assert max_difference({"a": ones, "b": np.array([np.nan])}, {"a": ones, "b": np.ones(1)}) == (np.inf, 0.0)


def test_max_difference_of_another_number_of_outputs() -> None:
    ones = np.ones(2)
    assert max_difference({"a": ones, "b": ones}, {"a": ones}) == (np.inf, 0.0)
