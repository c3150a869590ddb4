"""Forms of a MatMul's input: a scale a token, smoothing that costs nothing, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Context, StepResult
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.numerics import quantize_weight
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

WIDTH, OUT = 48, 32
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(WIDTH, OUT)).astype(np.float32)
BIAS = RNG.normal(size=OUT).astype(np.float32)
GAIN = np.geomspace(0.3, 3, WIDTH).astype(np.float32)
NODE = helper.make_node
LINEAR = [NODE("MatMul", ["x", "w"], ["xw"], name="linear"), NODE("Add", ["xw", "b"], ["y"], name="bias")]


def make_model(path: Path, nodes: list[onnx.NodeProto], *, opset: int = 18, **tensors: np.ndarray) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def quantize(path: Path, work: Path, samples: list[np.ndarray], **settings: object) -> tuple[StepResult, Path]:
    work.mkdir()
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(),
        calibration=[Batch(feed={"x": sample}, rows=len(sample)) for sample in samples],
        reference=open_runner(path),
        seed=0,
        work_dir=work,
    )
    result = parse_fields(QuantizeInt8, settings, "recipe").run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def run_optimized(path: Path, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime runs after its own optimizations."""
    open_runner(path, optimized=folder / "out" / "optimized.onnx")
    return Counter(node.op_type for node in load_graph(folder / "out" / "optimized.onnx").graph)


def uneven(seed: int, *, positive: bool) -> list[np.ndarray]:
    """Samples whose first token is a hundred times larger than the others."""
    rng = np.random.default_rng(seed)
    made = []
    for length in (20, 30, 25, 40):
        sample = rng.normal(size=(1, length, WIDTH)).astype(np.float32)
        if positive:
            sample = np.maximum(sample, -0.17)
        sample[:, 0] *= 100
        made.append(np.maximum(sample, -0.17) if positive else sample)
    return made


def expected_rows(x: np.ndarray, zero: int, lowest: float) -> np.ndarray:
    """What 8 bits a row leave of ``x``, written out."""
    rows = []
    for row in x.reshape(-1, WIDTH).astype(np.float64):
        step = np.abs(row).max() / 127 if zero == 128 else max(row.max() / (255 - zero), -lowest / zero)
        rows.append((np.clip(np.rint(row / step) + zero, 0, 255) - zero) * step)
    return np.array(rows).reshape(x.shape)


@pytest.mark.parametrize("form", ["integer", "qdq"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_scale_a_token_equals_numpy(tmp_path: Path, *, form: str, positive: bool, opset: int) -> None:
    path = make_model(tmp_path / "m.onnx", LINEAR, opset=opset, w=WEIGHT, b=BIAS)
    samples = uneven(1, positive=positive)
    result, made = quantize(path, tmp_path / "w", samples, activation="per_token", rounding="nearest", form=form)
    assert result.metrics["per_token_inputs"] == 1
    initializers = load_graph(made).graph.initializers
    zero = int(initializers["x.zero_point"].const_value.numpy())
    assert (zero < 128) == positive
    lowest = float(min(sample.min() for sample in samples))
    rounded = quantize_weight(WEIGHT, axis=1).dequantize(1).astype(np.float64)
    runner, exact = open_runner(made), open_runner(path)
    for sample in uneven(2, positive=positive):
        found, wanted = runner({"x": sample})["y"], expected_rows(sample, zero, lowest) @ rounded + BIAS
        size = np.abs(wanted).max(axis=-1, keepdims=True)
        # A value half way between two integers may go either way in float32.
        assert np.mean(np.abs(found - wanted) > 1e-4 * size) < 0.02
        np.testing.assert_allclose(found / size, wanted / size, atol=0.02)
        error = np.abs(found - exact({"x": sample})["y"]).max(axis=-1)
        assert np.median(error) < 0.2, "tokens beside the large one are spared"
    assert run_optimized(made, tmp_path / "w")["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("bias", [True, False])
def test_independent_of_batch_and_padding(tmp_path: Path, *, bias: bool) -> None:
    nodes = LINEAR if bias else [NODE("MatMul", ["x", "w"], ["y"], name="linear")]
    tensors = {"w": WEIGHT, "b": BIAS} if bias else {"w": WEIGHT}
    path = make_model(tmp_path / "m.onnx", nodes, **tensors)
    _, made = quantize(path, tmp_path / "w", uneven(1, positive=True), activation="per_token")
    runner = open_runner(made)
    one = RNG.normal(size=(1, 6, WIDTH)).astype(np.float32)
    other = 50 * RNG.normal(size=(1, 9, WIDTH)).astype(np.float32)
    padded = np.concatenate([one, np.zeros((1, 3, WIDTH), np.float32)], axis=1)
    both = runner({"x": np.concatenate([padded, other])})["y"]
    np.testing.assert_array_equal(both[:1, :6], runner({"x": one})["y"])
    assert np.isfinite(both).all()


def test_auto_takes_a_scale_a_token_where_it_pays(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", LINEAR, w=WEIGHT, b=BIAS)
    even = [RNG.normal(size=(1, 30, WIDTH)).astype(np.float32) for _ in range(4)]
    for name, samples, wanted in (("uneven", uneven(1, positive=False), 1), ("even", even, 0)):
        result, _ = quantize(path, tmp_path / name, samples, activation="auto")
        assert result.metrics["per_token_inputs"] == wanted, name
        result, _ = quantize(path, tmp_path / f"{name}_static", samples)
        assert result.metrics["per_token_inputs"] == 0


def test_layers_that_share_an_input_share_its_steps(tmp_path: Path) -> None:
    nodes = [
        NODE("MatMul", ["x", "w"], ["q"], name="q"),
        NODE("MatMul", ["x", "v"], ["k"], name="k"),
        NODE("Add", ["q", "k"], ["y"], name="sum"),
    ]
    path = make_model(tmp_path / "m.onnx", nodes, w=WEIGHT, v=-WEIGHT[::-1].copy())
    samples = uneven(1, positive=False)
    _, made = quantize(path, tmp_path / "w", samples, activation="per_token")
    operators = Counter(node.op_type for node in load_graph(made).graph)
    assert operators["ReduceMax"] == operators["QuantizeLinear"] == 1
    wanted = open_runner(path)({"x": samples[1]})["y"]
    assert np.linalg.norm(open_runner(made)({"x": samples[1]})["y"] - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("residual", [True, False])
def test_smoothing_costs_no_node_where_it_can_be_folded(tmp_path: Path, *, residual: bool) -> None:
    gain = GAIN.copy()
    gain[7] *= 60
    nodes = [
        NODE("LayerNormalization", ["x", "gain"], ["normal"], name="normalization", axis=-1),
        NODE("MatMul", ["normal", "w"], ["p"], name="linear"),
        NODE("Add", ["p", "b"], ["y" if not residual else "q"], name="bias"),
    ]
    if residual:
        nodes += [NODE("ReduceSum", ["normal"], ["r"], name="sum"), NODE("Add", ["q", "r"], ["y"], name="residual")]
    path = make_model(tmp_path / "m.onnx", nodes, w=WEIGHT, b=BIAS, gain=gain)
    samples = [RNG.normal(size=(1, 40, WIDTH)).astype(np.float32) for _ in range(6)]
    result, made = quantize(path, tmp_path / "w", samples)
    assert result.metrics["smoothed_inputs"] == 1
    assert result.metrics["folded_smoothings"] == (not residual)
    assert Counter(node.op_type for node in load_graph(made).graph)["Mul"] == residual
    _, plain = quantize(path, tmp_path / "plain", samples, smooth=False)
    unseen = {"x": RNG.normal(size=(1, 50, WIDTH)).astype(np.float32)}
    wanted = open_runner(path)(unseen)["y"]
    errors = [np.linalg.norm(open_runner(one)(unseen)["y"] - wanted) for one in (made, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_a_scale_a_token_is_smoothed_where_channels_differ(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", LINEAR, w=WEIGHT, b=BIAS)
    spread = np.ones(WIDTH, np.float32)
    spread[[5, 30]] = 60
    samples = [spread * RNG.normal(size=(1, 40, WIDTH)).astype(np.float32) for _ in range(4)]
    made = {}
    for smooth in (True, False):
        result, made[smooth] = quantize(path, tmp_path / str(smooth), samples, activation="per_token", smooth=smooth)
        assert result.metrics["per_token_inputs"] == 1
        assert result.metrics["smoothed_inputs"] == smooth
    unseen = {"x": spread * RNG.normal(size=(1, 50, WIDTH)).astype(np.float32)}
    wanted = open_runner(path)(unseen)["y"]
    errors = {smooth: np.linalg.norm(open_runner(model)(unseen)["y"] - wanted) for smooth, model in made.items()}
    assert errors[True] < 0.5 * errors[False]
