"""Fewer bits, tensor by tensor: errors against NumPy, the command, and the page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from headless import NAMES, find_browser, open_page
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.core import Batch, Quiet
from edgeslim.errors import BadInputError, UsageError
from edgeslim.html_sensitivity import render_sensitivity
from edgeslim.numerics import Histogram
from edgeslim.quantizing.outliers import InputFacts, measure_outliers
from edgeslim.quantizing.sensitivity import (
    BITS,
    Sensitivity,
    TensorSensitivity,
    measure_graph,
    measure_stored,
    round_channels,
)
from edgeslim.tensor_files import read_safetensors


def relative(wrong: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


def quantized(weight: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """By loops, one channel after the other."""
    levels = 2 ** (bits - 1) - 1
    result = np.array(weight, np.float64)
    for index in range(weight.shape[axis]):
        place = tuple(index if dim == axis else slice(None) for dim in range(weight.ndim))
        scale = np.abs(weight[place]).max() / levels or 1
        result[place] = np.round(weight[place].astype(np.float64) / scale) * scale
    return result


def test_two_bits_by_hand() -> None:
    # A scale of 2 and of 4, levels -1, 0 and 1; -1.1 / 2 rounds to -1, 0.9 / 2 to 0.
    weight = np.array([[2, 4], [-1.1, 1], [0.9, 0]], np.float32)
    np.testing.assert_allclose(round_channels(weight, 1, 2), [[2, 4], [-2, 0], [0, 0]])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("shape", "axis"), [((20, 30), 1), ((20, 30), 0), ((8, 3, 3, 3), 0)])
def test_rounding_against_loops(bits: int, shape: tuple[int, ...], axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[(0,) * (len(shape) - 1)] = 0
    np.testing.assert_allclose(round_channels(weight, axis, bits), quantized(weight, axis, bits), atol=1e-5)


def test_outliers_against_numpy() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=200_000).astype(np.float32)
    values[:50] = 40
    histogram = Histogram()
    histogram.update(values)
    ratio, energy = measure_outliers(histogram)
    bound = np.percentile(np.abs(values), 99.9)
    assert ratio == pytest.approx(40 / bound, rel=0.01)
    assert energy == pytest.approx(np.square(values[np.abs(values) > bound]).sum() / np.square(values).sum(), rel=0.02)
    assert measure_outliers(Histogram()) == (1.0, 0.0)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A table, a Transpose in front of a MatMul, a Gemm with transB: ``y = relu(table[ids] @ first.T) @ second.T``."""
    random = np.random.default_rng(2)
    tensors = {
        "table": random.normal(size=(50, 12)).astype(np.float32),
        "first": random.normal(size=(16, 12)).astype(np.float32),
        "second": random.normal(size=(5, 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("Transpose", ["first"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "second"], ["y"], name="two", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, tensors


def test_errors_of_outputs_against_numpy(net: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path, tensors = net
    ids = np.random.default_rng(3).integers(0, 50, (6, 9))
    batches = [Batch(feed={"ids": row}, rows=1) for row in ids]
    found = {row.name: row for row in measure_graph(path, batches, tmp_path, seed=0, progress=Quiet())}
    assert {name: row.operator for name, row in found.items()} == {
        "table": "Gather",
        "first": "MatMul",
        "second": "Gemm",
    }

    def run(table: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
        x = table[ids.ravel()].astype(np.float64)
        hidden = x @ first.T
        return {"table": x, "first": hidden, "second": np.maximum(hidden, 0) @ second.T}

    right = run(**tensors)
    for name, weight in tensors.items():
        for bits in BITS:
            rounded = quantized(weight, 0, bits)
            wrong = run(**{**tensors, name: rounded})
            assert found[name].weight_error[bits] == pytest.approx(relative(rounded, weight), rel=1e-4)
            assert found[name].output_error[bits] == pytest.approx(relative(wrong[name], right[name]), rel=1e-3)  # type: ignore[index]
            assert found[name].model_error[bits] == pytest.approx(relative(wrong["second"], right["second"]), rel=1e-3)  # type: ignore[index]
    facts = found["second"].input
    assert facts is not None
    assert facts.peak == pytest.approx(np.maximum(right["first"], 0).max(), rel=1e-5)
    assert facts.smoothed_error is not None
    assert facts.int8_error is not None
    assert 0 < facts.smoothed_error <= facts.int8_error < 0.05
    assert found["table"].input is None


def test_a_convolution_and_no_data(tmp_path: Path) -> None:
    weight = np.random.default_rng(4).normal(size=(6, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"], name="conv")],
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (row,) = measure_graph(path, (), tmp_path, seed=0, progress=Quiet())
    assert (row.output_error, row.model_error, row.input) == (None, None, None)
    image = np.random.default_rng(5).normal(size=(1, 2, 8, 8)).astype(np.float32)
    batches = [Batch(feed={"image": image}, rows=1)]
    (row,) = measure_graph(path, batches, tmp_path / "run", seed=0, progress=Quiet())
    assert row.weight_error[3] == pytest.approx(relative(quantized(weight, 0, 3), weight), rel=1e-4)
    assert row.output_error == pytest.approx(row.model_error)
    assert row.input is not None
    assert row.input.int8_error is None
    assert row.input.peak == pytest.approx(np.abs(image).max())


def test_stored_tensors_of_every_float_type(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    types = {"a.weight": torch.float32, "b.weight": torch.float16, "c.weight": torch.bfloat16}
    save_file(
        {name: weight.to(dtype) for name, dtype in types.items()} | {"bias": weight[0].clone()},
        tmp_path / "w.safetensors",
    )
    found = measure_stored(read_safetensors([tmp_path / "w.safetensors"]).tensors, Quiet())
    assert {row.name for row in found} == set(types)
    for row in found:
        stored = weight.to(types[row.name]).float().numpy()
        assert row.weight_error[4] == pytest.approx(relative(quantized(stored, 0, 4), stored), rel=1e-4)


def test_refuses_a_model_without_float_weights(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="no float weights"):
        measure_graph(tmp_path / "m.onnx", (), tmp_path, seed=0, progress=Quiet())
    with pytest.raises(BadInputError, match="no float weights"):
        measure_stored((), Quiet())


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments])


def test_the_command_with_data(tiny_bert: Path, text_files: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = invoke(str(tiny_bert), "--sensitivity", "--data", str(text_files.txt), "--html", str(page), "--json")
    assert ended.exit_code == 0, ended.output
    plain = json.loads(ended.stdout)
    assert plain["schema"] == 1
    assert 0 < plain["samples"] <= 128
    operators = [row["operator"] for row in plain["tensors"]]
    assert operators.count("Gather") == 3
    assert operators.count("MatMul") > 6
    for row in plain["tensors"]:
        assert list(row["model_error"]) == [str(bits) for bits in BITS]
        assert row["model_error"]["8"] <= row["model_error"]["2"]
    content = page.read_text(encoding="utf-8")
    assert content.count("<tr>") == len(operators) + 2
    assert "script" not in content.replace("description", "")


def test_the_command_without_data(tiny_bert: Path, mlp_onnx: Path) -> None:
    for model in (tiny_bert, mlp_onnx):
        ended = invoke(str(model), "--sensitivity", "--top", "2")
        assert ended.exit_code == 0, ended.output
        assert "weights alone" in " ".join(ended.stdout.split())
        assert "weight 4 bit" in ended.stdout


def test_options_that_need_another(mlp_onnx: Path) -> None:
    for option in ("--data", "--html", "--task"):
        ended = invoke(str(mlp_onnx), option, "x")
        assert isinstance(ended.exception, UsageError)
        assert option in str(ended.exception)


def test_names_are_escaped_and_figures_shown() -> None:
    evil = "<script>alert(1)</script>"
    row = TensorSensitivity(
        name=evil, layer="", operator="MatMul", shape=(2, 3), parameters=6, weight_error={8: 0.0041, 2: 0.62}
    )
    page = render_sensitivity(Sensitivity(model=evil, samples=0, tensors=(row,)))
    assert "<script" not in page
    assert '<td class="n h0 first">0.41</td><td class="n h5">62</td>' in page
    assert "default-src 'none'" in page


LEAST_CONTRAST = """(() => {
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const luminance = (...colours) => {
    colours.forEach(colour => { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); });
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  return Math.min(...[...document.querySelectorAll("td, .heatlegend span")].map(cell => {
    const style = getComputedStyle(cell);
    const found = [luminance(paper, style.backgroundColor), luminance(style.color)].sort((a, b) => a - b);
    return (found[1] + 0.05) / (found[0] + 0.05);
  }));
})()"""


@pytest.mark.slow
def test_a_browser_shows_the_heat_map_in_light_and_dark(tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.fail(f"none of {', '.join(NAMES)} is installed: apt-get install -y chromium")
    errors = dict(zip(BITS, (0.001, 0.01, 0.04, 0.1, 0.7), strict=True))
    facts = InputFacts(
        peak=9, outlier_ratio=7.5, outlier_energy=0.3, int8_error=0.04, smoothed_error=0.01, strength=0.9
    )
    rows = [
        TensorSensitivity(
            name="w", layer=f"encoder.layer.{number}.attention.self.query", operator="MatMul", shape=(384, 384),
            parameters=147_456, weight_error=errors, output_error={**errors, 2: 0.3}, model_error=errors, input=facts,
        )
        for number in range(30)
    ]  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(render_sensitivity(Sensitivity(model="m", samples=8, tensors=tuple(rows))), encoding="utf-8")
    (tmp_path / "profile").mkdir()
    with open_page(browser, tmp_path / "profile") as page:
        for scheme in ("light", "dark"):
            for width in (390, 1280):
                page.open(path, width=width, scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") == width
                assert page.evaluate("document.querySelectorAll('.h5').length") == 61
                assert page.evaluate(LEAST_CONTRAST) >= 4.5, scheme
                if "EDGESLIM_SCREENSHOTS" in os.environ:  # to look at
                    page.screenshot(Path(os.environ["EDGESLIM_SCREENSHOTS"]) / f"heat-{scheme}-{width}.png")
        assert page.complaints() == []
