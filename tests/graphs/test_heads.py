"""Attention whose heads stay where they are: the same numbers from fewer copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.graphs.heads import settle_heads
from edgeslim.session import open_runner

WIDTH, HEADS, SIZE = 24, 3, 8
NODE = helper.make_node
RNG = np.random.default_rng(5)


def make_attention(
    path: Path, *, target: tuple[int, ...] = (0, -1, HEADS, SIZE), two_steps: bool = False, extra: str = ""
) -> Path:
    """An int8 input, three projections, and the products of attention over it."""
    tensors = {"scale": np.float32(0.1), "zero": np.uint8(120), "heads": np.array(target, np.int64)}
    nodes = [NODE("QuantizeLinear", ["x", "scale", "zero"], ["u"])]
    for name in "qkv":
        tensors[f"{name}_w"] = RNG.integers(-20, 20, (WIDTH, WIDTH)).astype(np.int8)
        tensors[f"{name}_s"] = RNG.uniform(0.01, 0.02, WIDTH).astype(np.float32)
        inputs = ["u", f"{name}_w", "scale", f"{name}_s", "zero"]
        nodes.append(NODE("MatMulIntegerToFloat", inputs, [name], domain="com.microsoft"))
        nodes.append(NODE("Reshape", [name, "heads"], [f"{name}4"]))
    nodes.append(NODE("Transpose", ["q4"], ["qt"], perm=[0, 2, 1, 3]))
    nodes.append(NODE("Transpose", ["v4"], ["vt"], perm=[0, 2, 1, 3]))
    if two_steps:
        nodes.append(NODE("Transpose", ["k4"], ["kh"], perm=[0, 2, 1, 3]))
        nodes.append(NODE("Transpose", ["kh"], ["kt"], perm=[0, 1, 3, 2]))
    else:
        nodes.append(NODE("Transpose", ["k4"], ["kt"], perm=[0, 2, 3, 1]))
    nodes += [NODE("MatMul", ["qt", "kt"], ["scores"]), NODE("Softmax", ["scores"], ["shares"])]
    nodes.append(NODE("MatMul", ["shares", "vt"], ["y"]))
    outputs = ["y"]
    if extra:
        nodes.append(NODE("Identity", [extra], ["again"]))
        outputs.append("again")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def settle(path: Path, folder: Path) -> tuple[int, Path]:
    model = load_graph(path)
    settled = settle_heads(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return settled, save_graph(model, folder)[0]


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("target", [(0, -1, HEADS, SIZE), (0, 0, HEADS, SIZE), (-1, 5, HEADS, SIZE)])
def test_products_are_the_same_numbers(tmp_path: Path, *, target: tuple[int, ...], two_steps: bool) -> None:
    path = make_attention(tmp_path / "m.onnx", target=target, two_steps=two_steps)
    settled, made = settle(path, tmp_path / "made")
    assert settled == 2
    operators = Counter(node.op_type for node in load_graph(made).graph)
    assert operators["FusedMatMul"] == 2
    assert operators["MatMulIntegerToFloat"] == 3
    assert operators["Transpose"] == 1, "of the input in uint8, for all three projections"
    before, after = open_runner(path), open_runner(made)
    for batch in (1, 3):
        x = RNG.normal(size=(batch, 5, WIDTH)).astype(np.float32)
        np.testing.assert_array_equal(after({"x": x})["y"], before({"x": x})["y"])


@pytest.mark.parametrize("extra", ["q", "k"])
def test_what_others_take_is_left_alone(tmp_path: Path, extra: str) -> None:
    path = make_attention(tmp_path / "m.onnx", extra=extra)
    settled, made = settle(path, tmp_path / "made")
    assert settled == 2, "the other operands are still read in place"
    x = RNG.normal(size=(2, 4, WIDTH)).astype(np.float32)
    before, after = open_runner(path)({"x": x}), open_runner(made)({"x": x})
    for name in ("y", "again"):
        np.testing.assert_array_equal(after[name], before[name])


def test_plain_products_are_no_attention(tmp_path: Path) -> None:
    nodes = [NODE("Transpose", ["x"], ["t"], perm=[0, 2, 1]), NODE("MatMul", ["x", "t"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    assert settle(tmp_path / "m.onnx", tmp_path / "made")[0] == 0
