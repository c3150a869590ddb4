"""Static int8 against NumPy arithmetic, and against what ONNX Runtime really runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.numerics import Histogram, activation_affine, choose_range, quantize_activation, quantize_weight
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(32, 48)).astype(np.float32)
BIAS = RNG.normal(size=48).astype(np.float32)
TABLE = RNG.normal(size=(100, 32)).astype(np.float32)
SAMPLES = [RNG.normal(size=(1, length, 32)).astype(np.float32) for length in (3, 9, 5, 1)]


def make_model(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], **tensors: np.ndarray
) -> Path:
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def float_input(*shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="linear"),
        helper.make_node("Add", ["b", "xw"], ["y"], name="bias"),
    ]
    return make_model(tmp_path / "linear.onnx", nodes, [float_input("batch", "length", 32)], w=WEIGHT, b=BIAS)


def quantize(
    path: Path, stage: QuantizeInt8, work: Path, feeds: list[dict[str, np.ndarray]]
) -> tuple[StepResult, Path]:
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(),
        calibration=[Batch(feed=feed, rows=len(next(iter(feed.values())))) for feed in feeds],
        reference=open_runner(path),
        seed=0,
        work_dir=work,
    )
    result = stage.run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": sample} for sample in SAMPLES]


def run_optimized(path: Path, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime runs after its own optimizations."""
    open_runner(path, optimized=folder / "out" / "optimized.onnx")
    return Counter(node.op_type for node in load_graph(folder / "out" / "optimized.onnx").graph)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("activation_range", ["affine", "symmetric"])
@pytest.mark.parametrize("weight", ["symmetric", "affine"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", ["integer", "qdq"])
def test_equals_numpy(
    linear: Path, tmp_path: Path, *, method: str, activation_range: str, weight: str, per_channel: bool, form: str
) -> None:
    settings = {
        "method": method,
        "activation_range": activation_range,
        "weight": weight,
        "per_channel": per_channel,
        "form": form,
        "rounding": "nearest",
    }
    result, path = quantize(linear, parse_fields(QuantizeInt8, settings, "recipe"), tmp_path, feeds())
    assert result.changed == 1
    assert not result.skipped
    symmetric = activation_range == "symmetric"
    histogram = Histogram()
    for sample in SAMPLES:
        histogram.update(sample)
    affine = activation_affine(*choose_range(histogram, method, symmetric=symmetric), symmetric=symmetric)
    axis = 1 if per_channel else None
    rounded = quantize_weight(WEIGHT, axis=axis, symmetric=weight == "symmetric").dequantize(axis)
    runner = open_runner(path)
    for sample in SAMPLES:
        back = (quantize_activation(sample, affine).astype(np.float32) - affine.zero_point) * np.float32(affine.scale)
        np.testing.assert_allclose(runner({"x": sample})["y"], back @ rounded + BIAS, rtol=1e-4, atol=1e-4)
    error = np.abs(runner({"x": SAMPLES[1]})["y"] - (SAMPLES[1] @ WEIGHT + BIAS)).mean()
    assert error < 0.1, "int8 should be near the float layer"


def outlying(seed: int) -> list[dict[str, np.ndarray]]:
    """Correlated inputs, one channel of which is forty times larger than the others."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(6, 32))
    made = []
    for length in (40, 60, 50):
        sample = (rng.normal(size=(1, length, 6)) @ mixing + 0.2 * rng.normal(size=(1, length, 32))).astype(np.float32)
        sample[..., 5] *= 40
        made.append({"x": sample})
    return made


def relative_error(path: Path, made: Path, samples: list[dict[str, np.ndarray]]) -> float:
    """Power of the int8 layer's error over that of the float layer's output, on held-out samples."""
    wanted = [open_runner(path)(feed)["y"] for feed in samples]
    found = [open_runner(made)(feed)["y"] for feed in samples]
    error = sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))
    return error / sum(float(np.square(b).sum()) for b in wanted)


@pytest.mark.parametrize("form", ["integer", "qdq"])
def test_smoothing_and_gptq_bring_the_output_nearer(linear: Path, tmp_path: Path, form: str) -> None:
    errors = {}
    for name, settings in {
        "neither": {"method": "mse", "rounding": "nearest"},
        "smoothing": {"rounding": "nearest"},
        "both": {},
    }.items():
        work = tmp_path / name
        work.mkdir()
        stage = parse_fields(QuantizeInt8, {"form": form, **settings}, "recipe")
        result, made = quantize(linear, stage, work, outlying(1))
        errors[name] = relative_error(linear, made, outlying(2))
        assert result.metrics["smoothed_inputs"] == (name != "neither")
        assert run_optimized(made, work)["MatMulIntegerToFloat"] == 1
    assert errors["smoothing"] < 0.75 * errors["neither"]
    assert errors["both"] < errors["smoothing"]  # small here: most of what is left comes from the inputs


def test_layers_that_share_a_smoothed_input_all_get_gptq(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="q"),
        helper.make_node("Relu", ["q"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "square"], ["s"], name="between"),
        helper.make_node("MatMul", ["x", "v"], ["k"], name="k"),
        helper.make_node("Add", ["s", "k"], ["y"], name="sum"),
    ]
    square = RNG.normal(size=(48, 48)).astype(np.float32)
    path = make_model(
        tmp_path / "m.onnx", nodes, [float_input("n", "s", 32)], w=WEIGHT, v=WEIGHT[::-1].copy(), square=square
    )
    weights = {}
    for rounding in ("nearest", "gptq"):
        work = tmp_path / rounding
        work.mkdir()
        stage = parse_fields(QuantizeInt8, {"rounding": rounding}, "recipe")
        _, made = quantize(path, stage, work, outlying(3))
        model = load_graph(made)
        weights[rounding] = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
        assert Counter(node.op_type for node in model.graph)["QuantizeLinear"] == 2
    for name in ("q", "between", "k"):
        key = f"{name}.weight_int8"
        assert np.any(weights["gptq"][key] != weights["nearest"][key]), f"{name} was rounded to nearest"


@pytest.mark.parametrize("form", ["integer", "qdq"])
def test_runs_on_the_int8_kernel(linear: Path, tmp_path: Path, form: str) -> None:
    _, path = quantize(linear, parse_fields(QuantizeInt8, {"form": form}, "recipe"), tmp_path, feeds())
    ran = run_optimized(path, tmp_path)
    assert ran["MatMulIntegerToFloat"] == 1
    assert ran["MatMul"] == 0


def test_the_target_chooses_the_form(linear: Path, tmp_path: Path) -> None:
    _, path = quantize(linear, QuantizeInt8(smooth=False), tmp_path, feeds())
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_gemm_and_transposed_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "wt", "b"], ["h"], name="gemm", transB=1),
        helper.make_node("Transpose", ["v"], ["vt"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "vt"], ["y"], name="matmul"),
    ]
    turned = RNG.normal(size=(40, 48)).astype(np.float32)
    path = make_model(
        tmp_path / "m.onnx", nodes, [float_input("n", 32)], wt=np.ascontiguousarray(WEIGHT.T), b=BIAS, v=turned
    )
    samples = [{"x": RNG.normal(size=(rows, 32)).astype(np.float32)} for rows in (1, 4, 7)]
    result, made = quantize(path, QuantizeInt8(), tmp_path, samples)
    assert result.changed == 2
    left = {name for name in load_graph(made).graph.initializers if name in ("wt", "v")}
    assert not left, "float weights stay behind"
    for feed in samples:
        expected = open_runner(path)(feed)["y"]
        difference = open_runner(made)(feed)["y"] - expected
        assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(expected)


def test_layers_that_share_an_input_quantize_it_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="q"),
        helper.make_node("MatMul", ["x", "v"], ["k"], name="k"),
        helper.make_node("Add", ["k", "b"], ["kb"], name="kb"),
        helper.make_node("Add", ["q", "b"], ["qb"], name="qb"),
        helper.make_node("Add", ["qb", "kb"], ["y"], name="sum"),
    ]
    path = make_model(tmp_path / "m.onnx", nodes, [float_input("n", "s", 32)], w=WEIGHT, v=-2 * WEIGHT, b=BIAS)
    _, made = quantize(path, QuantizeInt8(smooth=False), tmp_path, feeds())
    operators = Counter(node.op_type for node in onnx.load(made).graph.node)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}
    expected = open_runner(path)(feeds()[1])["y"]
    assert np.abs(open_runner(made)(feeds()[1])["y"] - expected).max() < 0.05 * np.abs(expected).max()


def embedding(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="linear"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "s"])
    return make_model(tmp_path / "e.onnx", nodes, [ids], table=TABLE, w=WEIGHT)


def test_embeddings_stay_int8_at_run_time(tmp_path: Path) -> None:
    path = embedding(tmp_path)
    samples = [{"ids": RNG.integers(0, 100, (1, length))} for length in (4, 11)]
    result, made = quantize(path, QuantizeInt8(), tmp_path, samples)
    assert result.metrics["embedding_tables"] == 1
    weights = {item.name: item.const_value for item in load_graph(made).graph.initializers.values()}
    assert weights["embed.table_int8"].dtype == ir.DataType.INT8
    assert not any(item.dtype == ir.DataType.FLOAT and item.size >= TABLE.size for item in weights.values())
    ran = run_optimized(made, tmp_path)
    assert ran["DequantizeLinear"] == 0, "the whole table would be dequantized at every run"
    rows = quantize_weight(TABLE, axis=0).dequantize(0)
    model = load_graph(made)
    scaled = next(node.outputs[0] for node in model.graph if node.name == "embed.scaled")
    model.graph.outputs.append(scaled)
    scaled.type = ir.TensorType(ir.DataType.FLOAT)
    probe, _ = save_graph(model, tmp_path / "probe")
    found = open_runner(probe)(samples[1])[scaled.name]
    np.testing.assert_allclose(found, rows[samples[1]["ids"]], rtol=1e-6)


def test_says_what_it_leaves_alone_and_why(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="kept"),
        helper.make_node("Transpose", ["a"], ["t"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["y0"], name="attention"),
        helper.make_node("MatMul", ["a", "small"], ["y1"], name="tiny"),
        helper.make_node("MatMul", ["y0", "y1"], ["y"], name="mix"),
    ]
    small = RNG.normal(size=(48, 4)).astype(np.float32)
    path = make_model(tmp_path / "m.onnx", nodes, [float_input("n", "s", 32)], w=WEIGHT, small=small)
    result, _ = quantize(path, QuantizeInt8(keep_float=("ke*",)), tmp_path, feeds())
    assert result.changed == 0
    assert result.skipped == {
        "kept": "kept float by the recipe",
        "attention": "both operands are computed: there is no weight",
        "tiny": "its weight has 192 elements, fewer than min_elements = 1024",
        "mix": "both operands are computed: there is no weight",
    }


def test_independent_of_batch(linear: Path, tmp_path: Path) -> None:
    _, path = quantize(linear, QuantizeInt8(), tmp_path, feeds())
    runner = open_runner(path)
    one = RNG.normal(size=(1, 6, 32)).astype(np.float32)
    other = 100 * RNG.normal(size=(1, 6, 32)).astype(np.float32)
    both = runner({"x": np.concatenate([one, other])})["y"]
    np.testing.assert_allclose(both[:1], runner({"x": one})["y"], rtol=0, atol=1e-5)


def test_leaves_no_stray_file(linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, work = tmp_path / "here", tmp_path / "work"
    here.mkdir()
    work.mkdir()
    monkeypatch.chdir(here)
    quantize(linear, QuantizeInt8(), work, feeds())
    assert not list(here.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"here", "work", "linear.onnx"}


def test_calibrates_across_many_lengths_in_one_pass(linear: Path, tmp_path: Path) -> None:
    many = [{"x": RNG.normal(size=(1, length, 32)).astype(np.float32)} for length in range(1, 60)]
    result, _ = quantize(linear, QuantizeInt8(method="entropy"), tmp_path, many)
    assert result.metrics["calibration_samples"] == 59


def test_takes_calibration_data_from_all_over(linear: Path, tmp_path: Path) -> None:
    many = [{"x": RNG.normal(size=(1, 4, 32)).astype(np.float32)} for _ in range(50)]
    many[40]["x"][0, 0, 0] = 90
    stage = QuantizeInt8(method="minmax", calibration_samples=10)
    result, made = quantize(linear, stage, tmp_path, many)
    assert result.metrics["calibration_samples"] == 10
    scale = float(load_graph(made).graph.initializers["x.scale"].const_value.numpy())
    assert 90 / 255 <= scale < 96 / 255  # the 41st is the ninth of every fifth


def test_refuses_activations_that_are_not_finite(linear: Path, tmp_path: Path) -> None:
    bad = {"x": np.full((1, 2, 32), np.nan, np.float32)}
    with pytest.raises(BadInputError, match="activation x"):
        quantize(linear, QuantizeInt8(), tmp_path, [bad])


def test_refuses_to_guess_without_calibration(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no samples"):
        quantize(linear, QuantizeInt8(), tmp_path, [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methd": "mse"}, 'did you mean "method"'),
        ({"method": "mde"}, 'did you mean "mse"'),
        ({"percentile": 20.0}, "more than 50"),
        ({"min_elements": 0}, "at least 1"),
        ({"calibration_samples": 0}, "at least 1"),
        ({"per_channel": "yes"}, "true or false"),
        ({"keep_float": "x"}, "a list of a string"),
    ],
)
def test_refuses_bad_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        parse_fields(QuantizeInt8, settings, "recipe.toml")
