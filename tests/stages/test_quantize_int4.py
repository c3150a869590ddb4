"""Blocks of 4 and 8 bits against NumPy arithmetic, and against what ONNX Runtime really runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.algorithms.blockwise import round_blocks
from edgeslim.checks.operators import check_operators
from edgeslim.core import Batch, Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.block_forms import accuracy_level
from edgeslim.graphs.graph import load_graph, save_graph, weight_spans
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int4 import QuantizeInt4
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(64, 48)).astype(np.float32)
BIAS = RNG.normal(size=48).astype(np.float32)
TABLE = RNG.normal(size=(300, 64)).astype(np.float32)
MIXING = RNG.normal(size=(16, 64))
SAMPLES = [
    (RNG.normal(size=(1, length, 16)) @ MIXING + 0.3 * RNG.normal(size=(1, length, 64))).astype(np.float32)
    for length in (30, 90, 50, 1)
]
FLOAT = {"accuracy_level": 0}


def make_model(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], opset: int = 18, **tensors: np.ndarray
) -> Path:
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="linear"),
        helper.make_node("Add", ["b", "xw"], ["y"], name="bias"),
    ]
    inputs = [value("x", TensorProto.FLOAT, "batch", "length", 64)]
    return make_model(tmp_path / "linear.onnx", nodes, inputs, w=WEIGHT, b=BIAS)


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A language model's two ends: a table, and an output layer whose weight is the table, transposed in the graph."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embed"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="head"),
    ]
    return make_model(tmp_path / "tied.onnx", nodes, [value("ids", TensorProto.INT64, "batch", "length")], table=TABLE)


def quantize(
    path: Path, work: Path, feeds: list[dict[str, np.ndarray]] | None = None, **settings: Any
) -> tuple[StepResult, Path]:
    feeds = [{"x": sample} for sample in SAMPLES] if feeds is None else feeds
    work.mkdir(exist_ok=True)
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(),
        calibration=[Batch(feed=feed, rows=len(next(iter(feed.values())))) for feed in feeds],
        reference=open_runner(path),
        seed=0,
        work_dir=work,
    )
    stage = parse_fields(QuantizeInt4, settings, "recipe")
    result = stage.run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def optimized(path: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime runs after its own optimizations."""
    open_runner(path, optimized=path.parent / "optimized.onnx")
    return Counter(node.op_type for node in load_graph(path.parent / "optimized.onnx").graph)


@pytest.mark.parametrize("form", ["packed", "qdq"])
@pytest.mark.parametrize("weight", ["symmetric", "affine"])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 16), (4, 32), (4, 128), (8, 32)])
def test_linear_equals_numpy(
    linear: Path, tmp_path: Path, *, form: str, weight: str, bits: int, block_size: int
) -> None:
    settings = {"form": form, "weight": weight, "bits": bits, "block_size": block_size}
    result, made = quantize(linear, tmp_path / "work", algorithm="rtn", **FLOAT, **settings)
    symmetric = weight == "symmetric"
    rounded = round_blocks(WEIGHT.T, bits=bits, block_size=block_size, symmetric=symmetric).dequantize().T
    runner = open_runner(made)
    if form == "packed":
        for sample in SAMPLES:
            np.testing.assert_allclose(runner({"x": sample})["y"], sample @ rounded + BIAS, rtol=1e-4, atol=1e-4)
    else:  # the runtime fuses it with int8 arithmetic, its default for this form
        found, wanted = runner({"x": SAMPLES[1]})["y"], SAMPLES[1] @ rounded + BIAS
        assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
    if form == "qdq" and bits == 4:
        assert optimized(made)["MatMulNBits"] == 1
        assert optimized(made)["DequantizeLinear"] == 0
    assert result.metrics["linear_layers"] == 1
    assert all(finding.verdict == "pass" for finding in check_operators(made, load_target("android-arm64")))


@pytest.mark.parametrize("weight", ["symmetric", "affine"])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 32), (4, 128)])
def test_table_equals_numpy(tmp_path: Path, *, weight: str, bits: int, block_size: int) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")]
    path = make_model(tmp_path / "table.onnx", nodes, [value("ids", TensorProto.INT64, "batch", "length")], table=TABLE)
    feed = {"ids": np.array([[0, 99, 7], [3, 3, 50]])}
    settings = {"weight": weight, "embedding_bits": bits, "embedding_block_size": block_size}
    result, made = quantize(path, tmp_path / "work", [feed], **settings)
    rounded = round_blocks(TABLE, bits=bits, block_size=block_size, symmetric=weight == "symmetric").dequantize()
    np.testing.assert_allclose(open_runner(made)(feed)["y"], rounded[feed["ids"]], rtol=1e-3)  # scales are float16
    assert optimized(made) == {"GatherBlockQuantized": 1, "Cast": 1}
    blocks = -(-64 // block_size)
    zero_points = 0 if weight == "symmetric" else -(-blocks * bits // 8)
    assert sum(span.length for span in weight_spans(made)) == 300 * (64 * bits / 8 + 2 * blocks + zero_points)
    assert sum(span.length for span in weight_spans(made)) == result.metrics["embedding_bytes"]
    assert all(finding.verdict == "pass" for finding in check_operators(made, load_target("android-arm64")))


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("form", ["packed", "qdq"])
def test_tied_weights_are_stored_once(tied: Path, tmp_path: Path, *, block_size: int, form: str) -> None:
    feeds = [{"ids": RNG.integers(0, 100, (1, 20))} for _ in range(5)]
    settings = {"block_size": block_size, "form": form, "algorithm": "rtn"}
    result, made = quantize(tied, tmp_path / "work", feeds, **FLOAT, **settings)
    rounded = round_blocks(TABLE, bits=4, block_size=block_size).dequantize()
    np.testing.assert_allclose(
        open_runner(made)(feeds[0])["y"], rounded[feeds[0]["ids"]] @ rounded.T, rtol=1e-4, atol=1e-4
    )
    sizes = {span.name: span.length for span in weight_spans(made) if span.dtype != "bytes"}
    blocks = -(-64 // block_size)
    assert sizes == {"head.weight_q4": 300 * blocks * block_size // 2, "head.weight_scale": 300 * blocks * 4}
    assert result.metrics["tied_matrices"] == 1
    assert result.changed == 2


def test_a_transposed_copy_is_the_same_matrix(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embed"),
        helper.make_node("MatMul", ["rows", "copy"], ["y"], name="head"),
    ]
    inputs = [value("ids", TensorProto.INT64, "batch", "length")]
    path = make_model(tmp_path / "two.onnx", nodes, inputs, table=TABLE, copy=np.ascontiguousarray(TABLE.T))
    result, made = quantize(path, tmp_path / "work", [{"ids": np.arange(100).reshape(1, 100)}])
    assert result.metrics["tied_matrices"] == 1
    assert sum(span.length for span in weight_spans(made) if span.dtype == "uint8") == 300 * 32


def test_gptq_brings_the_output_nearer(linear: Path, tmp_path: Path) -> None:
    wanted = np.concatenate([sample[0] @ WEIGHT + BIAS for sample in SAMPLES])
    errors = {}
    for algorithm in ("rtn", "gptq"):
        _, made = quantize(linear, tmp_path / algorithm, algorithm=algorithm)
        runner = open_runner(made)
        found = np.concatenate([runner({"x": sample})["y"][0] for sample in SAMPLES])
        errors[algorithm] = float(np.square(found - wanted).sum() / np.square(wanted).sum())
    assert errors["gptq"] < 0.5 * errors["rtn"] < 0.01


def test_biases_take_up_the_mean_error(tmp_path: Path) -> None:
    """Inputs far from zero, and a layer without a bias: it gets one, and the mean output stays."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")]
    path = make_model(tmp_path / "plain.onnx", nodes, [value("x", TensorProto.FLOAT, "b", "n", 64)], w=WEIGHT)
    samples = [sample + np.float32(5) * np.cos(np.arange(64, dtype=np.float32)) for sample in SAMPLES]
    _, made = quantize(path, tmp_path / "work", [{"x": sample} for sample in samples], **FLOAT)
    runner = open_runner(made)
    lost = np.concatenate([runner({"x": sample})["y"][0] - sample[0] @ WEIGHT for sample in samples])
    assert np.abs(lost.mean(axis=0)).max() < 0.02 * lost.std()


def test_scaling_and_hqq_through_the_stage(linear: Path, tmp_path: Path) -> None:
    """Some channels forty times larger than others: scaling pays, with GPTQ behind it more than without."""
    samples = [sample * np.where(np.arange(64) % 16 == 5, 40, 1).astype(np.float32) for sample in SAMPLES]
    wanted = np.concatenate([sample[0] @ WEIGHT + BIAS for sample in samples])
    errors = {}
    for algorithm in ("rtn", "hqq", "awq", "awq_gptq"):
        feeds = [{"x": sample} for sample in samples]
        result, made = quantize(linear, tmp_path / algorithm, feeds, algorithm=algorithm, **FLOAT)
        runner = open_runner(made)
        found = np.concatenate([runner({"x": sample})["y"][0] for sample in samples])
        errors[algorithm] = float(np.square(found - wanted).sum())
        assert result.metrics["inputs_scaled_by_mul"] == algorithm.startswith("awq")
        assert optimized(made)["Mul"] == algorithm.startswith("awq")
    assert errors["awq"] < 0.5 * errors["rtn"]
    assert errors["awq_gptq"] < 0.5 * errors["awq"]
    assert 0.5 * errors["rtn"] < errors["hqq"] < 2 * errors["rtn"], "it forgives outliers of the weights, not inputs"


def test_batch_and_single_agree(linear: Path, tmp_path: Path) -> None:
    _, made = quantize(linear, tmp_path / "work")
    runner = open_runner(made)
    rows = SAMPLES[1]
    together = runner({"x": np.concatenate([rows, rows * 7])})["y"]
    np.testing.assert_allclose(together[:1], runner({"x": rows})["y"], rtol=1e-5, atol=1e-5)


def test_bytes_go_where_they_count(tmp_path: Path) -> None:
    """Two layers side by side, one of which hardly counts: it stays coarse."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="heavy"),
        helper.make_node("MatMul", ["x", "second"], ["b"], name="light"),
        helper.make_node("Mul", ["b", "little"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    path = make_model(
        tmp_path / "two.onnx",
        nodes,
        [value("x", TensorProto.FLOAT, "batch", "length", 64)],
        first=WEIGHT,
        second=RNG.normal(size=(64, 48)).astype(np.float32),
        little=np.array(1e-3, np.float32),
    )
    plenty = 48 * (64 + 2 * 4) + 48 * (32 + 4)
    result, made = quantize(path, tmp_path / "work", max_bytes=plenty)
    found = {node.name: node for node in load_graph(made).graph if node.op_type == "MatMulNBits"}
    assert found["heavy.q8"].attributes["bits"].as_int() == 8
    assert found["light.q4"].attributes["bits"].as_int() == 4
    assert result.metrics["linear_bytes"] <= plenty
    assert sum(span.length for span in weight_spans(made)) >= result.metrics["linear_bytes"] - 256  # what is inline
    bits, _ = quantize(path, tmp_path / "bits", target_bits=5.0)
    assert bits.metrics["bits_per_weight"] <= 5.0


def test_what_is_left_alone_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="kept"),
        helper.make_node("MatMul", ["a", "small"], ["b"], name="little"),
        helper.make_node("MatMul", ["b", "turned"], ["y"], name="computed"),
        helper.make_node("Transpose", ["b"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Gather", ["odd", "ids"], ["z"], name="odd"),
    ]
    tensors = {"w": WEIGHT, "small": np.ones((48, 4), np.float32), "odd": np.ones((200, 33), np.float32)}
    inputs = [value("x", TensorProto.FLOAT, 1, "length", 64), value("ids", TensorProto.INT64, "n")]
    path = make_model(tmp_path / "mixed.onnx", nodes, inputs, **tensors)
    feeds = [{"x": SAMPLES[0], "ids": np.array([1])}]
    result, made = quantize(path, tmp_path / "work", feeds, keep_float=["ke*"])
    assert result.changed == 0
    assert {name: reason.split(",")[0] for name, reason in result.skipped.items()} == {
        "kept": "kept float by the recipe",
        "little": "its weight has 192 elements",
        "computed": "both operands are computed: there is no weight",
        "odd": "its rows have 33 values",
    }
    assert open_runner(made)(feeds[0]) is not None


def test_bad_settings_and_data(linear: Path, tmp_path: Path, refuses: Any) -> None:
    with refuses(BadInputError, where="recipe", got="block_size: 48", expected="16, 32, 64, 128, 256"):
        parse_fields(QuantizeInt4, {"block_size": 48}, "recipe")
    with refuses(BadInputError, where="recipe", got="target_bits", expected="one of them"):
        parse_fields(QuantizeInt4, {"target_bits": 5.0, "max_bytes": 9}, "recipe")
    with refuses(BadInputError, where="quantize_int4: max_bytes", got="10 bytes", expected="at least"):
        quantize(linear, tmp_path / "small", max_bytes=10)
    with refuses(BadInputError, where="calibration", got="no samples"):
        quantize(linear, tmp_path / "none", [])
    with refuses(BadInputError, where="activation x", got="NaN"):
        quantize(linear, tmp_path / "nan", [{"x": np.full((1, 3, 64), np.nan, np.float32)}])


@pytest.mark.parametrize(
    ("isa", "features", "bits", "level"),
    [
        ("arm64-v8a", ("neon", "dotprod"), 4, 4),
        ("arm64-v8a", ("neon",), 4, 0),
        ("arm64-v8a", ("neon",), 8, 4),
        ("x86_64", (), 4, 4),
    ],
)
def test_accuracy_level_follows_the_machine(isa: str, features: tuple[str, ...], bits: int, level: int) -> None:
    assert accuracy_level(isa, features, bits) == level
