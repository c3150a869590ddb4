"""Which constants are weights, and what is said of the others. Every model here runs before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import run_stage, write_model

from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.graphs.graph_weights import find_weights, write_weight
from edgeslim.session import open_runner

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> object:
    return helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Table → MatMul → Gemm (transB) → MatMul by the table's transpose; all float32."""
    nodes = [
        node("Gather", ["table", "ids"], "rows"),
        node("MatMul", ["rows", "first"], "hidden"),
        node("Reshape", ["hidden", "flat"], "flattened"),
        node("Gemm", ["flattened", "second", "bias"], "made", transB=1),
        node("Transpose", ["table"], "turned", perm=[1, 0]),
        node("MatMul", ["made", "turned"], "y"),
    ]
    tensors = {"table": normal(60, 32), "first": normal(32, 40), "second": normal(32, 40), "bias": normal(32)}
    flat = np.array([-1, 40], np.int64)
    return write_model(tmp_path / "mixed.onnx", nodes, {"ids": [1, "n"]}, flat=flat, **tensors)


def test_each_weight_once_with_all_its_uses(mixed: Path) -> None:
    skipped: dict[str, str] = {}
    weights = {weight.name: weight for weight in find_weights(load_graph(mixed), skipped)}
    assert list(weights) == ["table", "first", "second"]
    assert weights["table"].kinds == ("Gather", "MatMul")
    assert "differently: Gather, MatMul" in weights["table"].obstacle_to_matrix()
    assert [use.transposed for use in weights["second"].uses] == [True]
    assert weights["second"].matrix().shape == (40, 32)
    assert np.array_equal(weights["second"].from_matrix(weights["second"].matrix()), weights["second"].array)
    assert skipped == {}


def test_writing_changes_every_use(mixed: Path, tmp_path: Path) -> None:
    model = load_graph(mixed)
    for weight in find_weights(model, {}):
        write_weight(weight, weight.array * 2)
    doubled = open_runner(save_graph(model, tmp_path / "out")[0])
    feed = {"ids": np.arange(6, dtype=np.int64)[None]}
    before = open_runner(mixed)
    bias_only = {"ids": feed["ids"]}
    assert not np.allclose(before(bias_only)["y"], doubled(bias_only)["y"])
    table, first, second, bias = (load_graph(mixed).graph.initializers[n].const_value.numpy()
                                  for n in ("table", "first", "second", "bias"))  # fmt: skip
    expected = ((2 * table[:6] @ (2 * first)) @ (2 * second.T) + bias) @ (2 * table.T)
    assert doubled(feed)["y"].reshape(expected.shape) == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_kinds_sizes_and_patterns(mixed: Path) -> None:
    skipped: dict[str, str] = {}
    found = find_weights(load_graph(mixed), skipped, kinds=("MatMul", "Gemm"), min_elements=1281, keep=["hidden*"])
    assert found == []
    assert "weight of a Gather, and the stage takes MatMul, Gemm" in skipped["table"]
    assert skipped["first"] == "kept by the recipe"
    assert "1280 elements, fewer than min_elements = 1281" in skipped["second"]


def lstm(path: Path) -> Path:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["all", "h", "c"], name="memory", hidden_size=20),
        helper.make_node("MatMul", ["h", "weight"], ["y"], name="head"),
    ]
    return write_model(
        path, nodes, {"x": ["t", 1, 16]}, w=normal(1, 80, 16), r=normal(1, 80, 20), weight=normal(20, 64)
    )


def branches(path: Path) -> Path:
    """An If whose branches use an outer weight and one of their own."""
    inner = numpy_helper.from_array(normal(32, 32), "inner")
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["h", "outer"], ["z"])], "then", [], [output])
    other = helper.make_graph([helper.make_node("MatMul", ["h", "inner"], ["z"])], "else", [], [output], [inner])
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"], name="head"),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], name="choice", then_branch=then, else_branch=other),
    ]
    tensors = {"weight": normal(32, 32), "outer": normal(32, 32), "zero": np.float32(0)}
    return write_model(path, nodes, {"x": ["n", 32]}, **tensors)


def quantized(path: Path) -> Path:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"], name="decode"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "weight"], ["y"], name="head"),
    ]
    w8 = RANDOM.integers(-127, 128, (32, 32)).astype(np.int8)
    return write_model(path, nodes, {"x": ["n", 32]}, w8=w8, scale=np.float32(0.01), weight=normal(32, 32))


def external(path: Path) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"], name="head")]
    return write_model(path, nodes, {"x": ["n", 32]}, external=True, weight=normal(32, 32))


FEEDS = {
    lstm: {"x": normal(3, 1, 16)},
    branches: {"x": normal(5, 32)},
    quantized: {"x": normal(5, 32)},
    external: {"x": normal(5, 32)},
}
SETTINGS = {
    "low_rank": {"min_elements": 64, "multiple": 1, "keep": 0.5},
    "quantize_int4": {"block_size": 16, "min_elements": 64},
}
REASONS = {
    lstm: {"w": "belongs to memory, an LSTM", "r": "belongs to memory, an LSTM"},
    branches: {"outer": "used inside choice, a If", "inner": "used inside choice, a If"},
    quantized: {"w8": "quantized already: decode is a DequantizeLinear"},
    external: {},
}


@pytest.mark.parametrize("make", list(FEEDS), ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "stage", ["prune_magnitude", "prune_sensitivity", "cluster", "low_rank", "quantize_int8", "quantize_int4"]
)
def test_what_a_stage_doesnt_know_passes_unharmed(make: object, stage: str, tmp_path: Path) -> None:
    import importlib

    path = make(tmp_path / "model.onnx")
    module = importlib.import_module(f"edgeslim.stages.{stage}")
    made = getattr(module, module.__all__[0])(**SETTINGS.get(stage, {}))
    result, run = run_stage(made, path, tmp_path / "work", [FEEDS[make]])
    assert result.changed == 1
    for name, reason in REASONS[make].items():
        assert reason in result.skipped[name]
    kept = {name: value for name, value in load_graph(path).graph.initializers.items() if name != "weight"}
    for name, value in kept.items():
        assert np.array_equal(value.const_value.numpy(), result.model.graph.initializers[name].const_value.numpy())
    (before,), (after,) = open_runner(path)(FEEDS[make]).values(), run(FEEDS[make]).values()
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 0  # the head has changed
    cosine = float(np.sum(before * after) / np.linalg.norm(before) / np.linalg.norm(after))
    assert cosine > 0.6


def test_what_else_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["left", "x"], "a"),
        node("Gather", ["columns", "ids"], "g", axis=1),
        node("Gemm", ["x", "scaled"], "b", alpha=2.0),
        node("MatMul", ["x", "half"], "c0"),
        node("MatMul", ["x", "broken"], "c"),
        node("Add", ["x", "offset"], "d"),
        node("MatMul", ["x", "given"], "e"),
    ]
    broken = normal(32, 32)
    broken[3, 3] = np.nan
    tensors = {name: normal(32, 32) for name in ("left", "columns", "scaled", "half", "offset", "given")}
    path = write_model(
        tmp_path / "odd.onnx", nodes, {"x": [32, 32], "ids": [2], "given": [32, 32]},
        outputs=("a", "g", "b", "c0", "c", "d", "e"), broken=broken, **tensors,
    )  # fmt: skip
    skipped: dict[str, str] = {}
    assert [weight.name for weight in find_weights(load_graph(path), skipped)] == ["half"]
    assert "operand 0" in skipped["left"]
    assert "gathers along axis 1" in skipped["columns"]
    assert "alpha" in skipped["scaled"]
    assert "NaN" in skipped["broken"]
    assert "operand of d_node, a Add" in skipped["offset"]
    assert "input of the graph, too" in skipped["given"]
