"""Convolutions in int8 against torch's arithmetic, and against the graph that ONNX Runtime really runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Context, StepResult
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.graphs.int8_convs import quantize_bias
from edgeslim.numerics import Histogram, activation_affine, choose_range, quantization_error, quantize_weight
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import ImageClassification

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


PICTURES = [normal(1, 8, 12, 12) for _ in range(5)]


def make_model(path: Path, nodes: list[onnx.NodeProto], shape: tuple[Any, ...], **tensors: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def quantize(path: Path, work: Path, feeds: list[np.ndarray], **settings: Any) -> tuple[StepResult, Path]:
    context = Context(
        target=load_target("android-arm64"),
        task=ImageClassification(),
        calibration=[Batch(feed={"x": feed}, rows=len(feed)) for feed in feeds],
        reference=open_runner(path),
        seed=0,
        work_dir=work / "work",
    )
    result = QuantizeInt8(**settings).run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def ran(path: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime runs after its own optimizations."""
    open_runner(path, optimized=path.parent / "optimized.onnx")
    return Counter(node.op_type for node in load_graph(path.parent / "optimized.onnx").graph)


def affine_of(values: list[np.ndarray]) -> Any:
    histogram = Histogram()
    for value in values:
        histogram.update(value)
    return activation_affine(*choose_range(histogram, "mse", symmetric=False), symmetric=False)


def rounded(values: np.ndarray, affine: Any) -> np.ndarray:
    """Through uint8 and back."""
    steps = np.clip(np.rint(values / np.float32(affine.scale)) + affine.zero_point, 0, 255)
    return (steps - affine.zero_point) * affine.scale


CONVS = {
    "plain": ((16, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "stride": ((16, 8, 3, 3), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "dilated": ((4, 8, 3, 2), {"dilations": [2, 1]}),
    "grouped": ((16, 4, 3, 3), {"group": 2}),
    "depthwise": ((8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "pointwise": ((24, 8, 1, 1), {}),
    "line": ((16, 8, 3), {"pads": [1, 1]}),
}


@pytest.mark.parametrize("form", ["integer", "qdq"])
@pytest.mark.parametrize("after", ["nothing", "Relu", "Clip"])
@pytest.mark.parametrize("kind", CONVS)
def test_equals_torch(tmp_path: Path, kind: str, after: str, form: str) -> None:
    import torch

    shape, attributes = CONVS[kind]
    weight, bias = 0.2 * normal(*shape), normal(shape[0])
    pictures = [normal(1, 8, 12) for _ in range(5)] if kind == "line" else PICTURES
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", **attributes)]
    clip = ["c", "zero", "six"] if after == "Clip" else ["c"]
    nodes.append(helper.make_node("Identity" if after == "nothing" else after, clip, ["y"], name="after"))
    tensors = {"w": weight, "b": bias, "zero": np.float32(0), "six": np.float32(1.5)}
    path = make_model(tmp_path / "m.onnx", nodes, pictures[0].shape, **tensors)
    result, made = quantize(path, tmp_path, pictures, form=form)
    assert result.changed == 1
    assert not result.skipped

    source = affine_of(pictures)
    quantized = quantize_weight(weight, axis=0)
    steps = quantize_bias(bias, source.scale, quantized.scale)
    exact_bias = steps * np.float64(source.scale) * quantized.scale
    pads = attributes.get("pads", [0] * 4)
    half = len(pads) // 2
    padding = [side for dim in reversed(range(half)) for side in (pads[dim], pads[dim + half])]
    convolve = torch.nn.functional.conv1d if kind == "line" else torch.nn.functional.conv2d

    def run(values: np.ndarray, kernel: np.ndarray, add: np.ndarray) -> np.ndarray:
        padded = torch.nn.functional.pad(torch.from_numpy(values.astype(np.float64)), padding)
        options = {"groups": attributes.get("group", 1), "stride": attributes.get("strides", 1)}
        options["dilation"] = attributes.get("dilations", 1)
        kernels, biases = torch.from_numpy(kernel.astype(np.float64)), torch.from_numpy(add.astype(np.float64))
        found = convolve(padded, kernels, biases, **options).numpy()
        return found if after == "nothing" else np.clip(found, 0, 1.5 if after == "Clip" else None)

    output = affine_of([run(picture, weight, bias).astype(np.float32) for picture in pictures])
    runner = open_runner(made)
    for picture in pictures:
        expected = run(rounded(picture, source), quantized.dequantize(0), exact_bias)
        found = runner({"x": picture})["y"]
        assert np.abs(found - rounded(expected, output)).max() <= 1.001 * output.scale, "a step, where it rounds a tie"
        assert np.mean(np.abs(found - rounded(expected, output)) > 1e-4) < 0.01
    operators = ran(made)
    assert operators["QLinearConv"] == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip"} & set(operators)


def chain(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="depthwise", pads=[1, 1, 1, 1], group=16),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="pointwise"),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["y"]),
    ]
    tensors = {"w1": normal(16, 8, 3, 3), "b1": normal(16), "w2": normal(16, 1, 3, 3), "w3": normal(8, 16, 1, 1)}
    return make_model(path, nodes, ("n", 8, 12, 12), **tensors)


@pytest.mark.parametrize("form", ["integer", "qdq"])
def test_a_chain_stays_in_uint8(tmp_path: Path, form: str) -> None:
    path = chain(tmp_path / "m.onnx")
    result, made = quantize(path, tmp_path, PICTURES, form=form)
    assert result.metrics["conv_layers"] == 3
    operators = ran(made)
    assert operators["QLinearConv"] == 3
    assert operators["QuantizeLinear"] == 1
    assert operators["DequantizeLinear"] <= 1
    assert not {"Conv", "FusedConv", "Relu"} & set(operators)
    for picture in PICTURES:
        expected, found = open_runner(path)({"x": picture})["y"], open_runner(made)({"x": picture})["y"]
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_branches_meet_in_uint8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="stem"),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="branch", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["s"]),
        helper.make_node("Relu", ["s"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["s2"]),
        helper.make_node("Relu", ["s2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w0"], ["c3"], name="head"),
        helper.make_node("GlobalAveragePool", ["c3"], ["y"]),
    ]
    tensors = {"w0": normal(8, 8, 1, 1), "w1": 0.1 * normal(8, 8, 3, 3), "w2": 0.1 * normal(8, 8, 3, 3)}
    path = make_model(tmp_path / "m.onnx", nodes, ("n", 8, 12, 12), **tensors)
    result, made = quantize(path, tmp_path, PICTURES)
    assert result.changed == 4
    operators = ran(made)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["Add"]) == (4, 2, 0)
    expected, found = open_runner(path)({"x": PICTURES[0]})["y"], open_runner(made)({"x": PICTURES[0]})["y"]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_says_what_stays_float(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx")
    result, made = quantize(path, tmp_path / "a", PICTURES, keep_float=("depth*",))
    assert result.skipped == {"depthwise": "kept float by the recipe"}
    assert (ran(made)["QLinearConv"], result.changed) == (2, 2)
    result, _ = quantize(path, tmp_path / "b", PICTURES, convolutions=False)
    assert (result.changed, len(result.skipped)) == (0, 3)
    result, made = quantize(path, tmp_path / "c", PICTURES, max_output_error=1e-9)
    assert result.changed == 0
    assert all("its output in uint8 would lose" in reason for reason in result.skipped.values())
    assert ran(made)["QLinearConv"] == 0


def test_an_output_with_a_lone_giant_is_left_alone(tmp_path: Path) -> None:
    weight = normal(4, 8, 1, 1)
    pictures = [picture.copy() for picture in PICTURES]
    pictures[0][0, :, 0, 0] *= 3000
    path = make_model(
        tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"], name="c")], (1, 8, 12, 12), w=weight
    )
    result, _ = quantize(path, tmp_path, pictures, method="percentile", percentile=99.0)
    assert "would lose" in result.skipped["c"]


def test_a_computed_weight_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["w"], ["v"]),
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], keepdims=0),
        helper.make_node("Mul", ["v", "m"], ["u"]),
        helper.make_node("Conv", ["x", "u"], ["y"], name="c"),
    ]
    path = make_model(tmp_path / "m.onnx", nodes, (1, 8, 12, 12), w=normal(4, 8, 1, 1))
    result, _ = quantize(path, tmp_path, PICTURES)
    assert result.skipped == {"c": "its weight or bias is computed"}


def test_a_symmetric_scale_keeps_the_relu(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx")
    _, made = quantize(path, tmp_path, PICTURES, activation_range="symmetric")
    initializers = load_graph(made).graph.initializers
    zeros = {value.const_value.numpy().item() for name, value in initializers.items() if name.endswith(".zero_point")}
    assert zeros == {128}
    expected, found = open_runner(path)({"x": PICTURES[0]})["y"], open_runner(made)({"x": PICTURES[0]})["y"]
    assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_past_int32_gets_a_coarser_weight(tmp_path: Path, per_channel: bool) -> None:
    weight, bias = normal(4, 8, 1, 1), np.array([5, -7, 0, 3], np.float32)
    weight[1] *= 1e-12
    if not per_channel:
        weight *= 1e-12
    path = make_model(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c")],
        (1, 8, 12, 12),
        w=weight,
        b=bias,
    )
    _, made = quantize(path, tmp_path, PICTURES, per_channel=per_channel)
    expected, found = open_runner(path)({"x": PICTURES[0]})["y"], open_runner(made)({"x": PICTURES[0]})["y"]
    np.testing.assert_allclose(found[:, 1], -7, atol=0.06)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_quantization_error_by_hand() -> None:
    histogram = Histogram()
    assert quantization_error(histogram, activation_affine(0, 1, symmetric=False)) == 0.0
    histogram.update(np.full(100, 2.0, np.float32))
    clipped = activation_affine(0, 1, symmetric=False)
    assert quantization_error(histogram, clipped) == pytest.approx(0.25, abs=1e-3)
    assert quantization_error(histogram, activation_affine(0, 2, symmetric=False)) < 1e-4
