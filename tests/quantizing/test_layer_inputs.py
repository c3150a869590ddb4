"""Second moments against NumPy, and patches against PyTorch's own unfolding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from small_graphs import run_stage, write_model

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import find_weights
from edgeslim.quantizing.layer_inputs import input_moments, moment_key, patches

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


class Moments:
    """A stage that only looks."""

    def run(self, model: object, ctx: Context) -> StepResult:
        weights = find_weights(model, {}, min_elements=1)
        self.found = input_moments(model, weights, ctx)
        self.keys = {weight.name: moment_key(weight) for weight in weights}
        return StepResult(model=model, changed=0)


def moments(path: Path, work: Path, feeds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    stage = Moments()
    run_stage(stage, path, work, feeds)
    return {name: stage.found[key] for name, key in stage.keys.items()}


def test_a_shared_input_and_a_hidden_one(tmp_path: Path) -> None:
    weights = {"a": normal(6, 5), "b": normal(6, 5), "c": normal(5, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("MatMul", ["x", "b"], ["xb"]),
        helper.make_node("Add", ["xa", "xb"], ["h"]),
        helper.make_node("MatMul", ["h", "c"], ["y"]),
    ]
    path = write_model(tmp_path / "m.onnx", nodes, {"x": [1, "n", 6]}, **weights)
    feeds = [{"x": normal(1, length, 6)} for length in (3, 700, 2000)]
    found = moments(path, tmp_path / "work", feeds)
    rows = np.concatenate([feed["x"][0] for feed in feeds]).astype(np.float64)
    assert found["a"] == pytest.approx(rows.T @ rows, rel=1e-4)
    assert found["a"] is not None
    hidden = rows @ (weights["a"] + weights["b"])
    assert found["c"] == pytest.approx(hidden.T @ hidden, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize(("strides", "pads", "dilations"), [((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 2))])
def test_a_convolution(
    tmp_path: Path, strides: tuple[int, int], pads: tuple[int, int], dilations: tuple[int, int]
) -> None:
    weight = normal(4, 3, 3, 2)
    attributes = {"strides": strides, "pads": pads * 2, "dilations": dilations}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    path = write_model(tmp_path / "c.onnx", nodes, {"x": ["n", 3, 9, 8]}, w=weight)
    values = normal(2, 3, 9, 8)
    unfolded = torch.nn.functional.unfold(
        torch.tensor(values), (3, 2), dilation=dilations, padding=pads, stride=strides
    )
    rows = unfolded.transpose(1, 2).reshape(-1, 18).numpy()
    assert patches(values, (3, 2), strides=strides, dilations=dilations, pads=pads * 2) == pytest.approx(rows)
    found = moments(path, tmp_path / "work", [{"x": values}])["w"]
    assert found == pytest.approx(rows.T @ rows, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_is_what_onnx_runtime_does(tmp_path: Path, auto_pad: str) -> None:
    weight = normal(5, 2, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[2, 2])]
    path = write_model(tmp_path / "c.onnx", nodes, {"x": ["n", 2, 8, 7]}, w=weight)
    values = normal(1, 2, 8, 7)
    stage = Moments()
    _, run = run_stage(stage, path, tmp_path / "work", [{"x": values}])
    matrix = weight.reshape(5, -1)
    # The output's energy is what weights and moments say it is.
    energy = float(np.trace(matrix @ next(iter(stage.found.values())) @ matrix.T))
    assert energy == pytest.approx(float(np.square(run({"x": values})["y"]).sum()), rel=1e-4)


def test_refusals(tmp_path: Path, refuses: object) -> None:
    path = write_model(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, w=normal(4, 4)
    )
    with refuses(BadInputError, where="calibration", got="no samples", hint="--data"):
        run_stage(Moments(), path, tmp_path / "none", [])
    with refuses(BadInputError, where="activation x", got="NaN", expected="finite"):
        run_stage(Moments(), path, tmp_path / "nan", [{"x": np.full((1, 4), np.nan, np.float32)}])
