"""Folding a division into constants: the value is divided, all else is unchanged, and illegal cases are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.graphs.folding import plan_fold
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner

CHANNELS = 8
RNG = np.random.default_rng(0)
SCALE = np.geomspace(0.1, 20, CHANNELS).astype(np.float32)
CONSTANTS = {
    "w": RNG.normal(size=(CHANNELS, CHANNELS)).astype(np.float32),
    "u": RNG.normal(size=(CHANNELS, CHANNELS)).astype(np.float32),
    "b": RNG.normal(size=CHANNELS).astype(np.float32),
    "g": RNG.normal(size=CHANNELS).astype(np.float32),
    "half": np.array(0.5, np.float32),
    "split": np.array([0, 0, 2, 4], np.int64),
    "other_split": np.array([0, 0, 4, 2], np.int64),
    "merge": np.array([0, 0, 8], np.int64),
}
NODE = helper.make_node
HEADS = [
    NODE("MatMul", ["x", "u"], ["values"], name="values"),
    NODE("Add", ["values", "b"], ["biased"], name="biased"),
    NODE("Reshape", ["biased", "split"], ["split_values"], name="split_values"),
    NODE("Transpose", ["split_values"], ["heads"], name="heads", perm=[0, 2, 1, 3]),
    NODE("Reshape", ["x", "split"], ["split_keys"], name="split_keys"),
    NODE("Transpose", ["split_keys"], ["queries"], name="queries", perm=[0, 2, 1, 3]),
    NODE("Transpose", ["split_keys"], ["keys"], name="keys", perm=[0, 2, 3, 1]),
    NODE("MatMul", ["queries", "keys"], ["scores"], name="scores"),
    NODE("Softmax", ["scores"], ["shares"], name="shares", axis=-1),
    NODE("MatMul", ["shares", "heads"], ["weighted"], name="weighted"),
    NODE("Transpose", ["weighted"], ["turned"], name="turned", perm=[0, 2, 1, 3]),
    NODE("Reshape", ["turned", "merge"], ["v"], name="v"),
]
FOLDABLE = {
    "LayerNormalization": [NODE("LayerNormalization", ["x", "g", "b"], ["v"], name="v", axis=-1)],
    "normalization without a bias": [NODE("LayerNormalization", ["x", "g"], ["v"], name="v", axis=-1)],
    "MatMul": [NODE("MatMul", ["x", "u"], ["v"], name="v")],
    "Add": [NODE("MatMul", ["x", "u"], ["p"], name="p"), NODE("Add", ["b", "p"], ["v"], name="v")],
    "Mul by a vector": [NODE("Softplus", ["x"], ["p"], name="p"), NODE("Mul", ["p", "g"], ["v"], name="v")],
    "Mul by a number": [NODE("MatMul", ["x", "u"], ["p"], name="p"), NODE("Mul", ["p", "half"], ["v"], name="v")],
    "Relu": [
        NODE("MatMul", ["x", "u"], ["p"], name="p"),
        NODE("Add", ["p", "b"], ["q"], name="q"),
        NODE("Relu", ["q"], ["v"], name="v"),
    ],
    "gate": [
        NODE("MatMul", ["x", "w"], ["p"], name="p"),
        NODE("Sigmoid", ["p"], ["q"], name="q"),
        NODE("MatMul", ["x", "u"], ["r"], name="r"),
        NODE("Mul", ["r", "q"], ["v"], name="v"),
    ],
    "heads": HEADS,
}
REFUSED = {
    "a residual connection": [
        NODE("LayerNormalization", ["x", "g", "b"], ["v"], name="v", axis=-1),
        NODE("Add", ["v", "x"], ["elsewhere"], name="elsewhere"),
    ],
    "a function that doesn't commute": [
        NODE("MatMul", ["x", "u"], ["p"], name="p"),
        NODE("Tanh", ["p"], ["v"], name="v"),
    ],
    "a sum of two computed values": [
        NODE("MatMul", ["x", "u"], ["p"], name="p"),
        NODE("Add", ["p", "x"], ["v"], name="v"),
    ],
    "a value inside that something else takes": [
        NODE("MatMul", ["x", "u"], ["p"], name="p"),
        NODE("Relu", ["p"], ["v"], name="v"),
        NODE("Tanh", ["p"], ["elsewhere"], name="elsewhere"),
    ],
    "a square": [NODE("MatMul", ["x", "u"], ["p"], name="p"), NODE("Mul", ["p", "p"], ["v"], name="v")],
    "heads put together in another way": [
        *HEADS[:2],
        NODE("Reshape", ["biased", "other_split"], ["other_values"], name="other_values"),
        NODE("Transpose", ["other_values"], ["heads"], name="heads", perm=[0, 2, 3, 1]),
        *HEADS[4:],
    ],
}


def make_model(path: Path, nodes: list[onnx.NodeProto]) -> ir.Model:
    """``y`` = ``v`` x ``w``, and ``v`` by ``nodes`` from ``x``."""
    taken = {name for node in nodes for name in node.input} | {"w"}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "s", CHANNELS])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if any("elsewhere" in node.output for node in nodes):
        outputs.append(helper.make_tensor_value_info("elsewhere", TensorProto.FLOAT, None))
    initializers = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in taken]
    nodes = [*nodes, NODE("MatMul", ["v", "w"], ["y"], name="last")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return load_graph(path)


def run(model: ir.Model, folder: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, and ``v``."""
    value = next(node for node in model.graph if node.name == "last").inputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)
    path, _ = save_graph(model, folder)
    model.graph.outputs.pop()
    return open_runner(path)({"x": x})


@pytest.mark.parametrize("case", FOLDABLE)
def test_divides_the_value(case: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", FOLDABLE[case])
    x = RNG.normal(size=(2, 5, CHANNELS)).astype(np.float32)
    before = run(model, tmp_path / "before", x)
    nodes = len(model.graph)
    last = next(node for node in model.graph if node.name == "last")
    fold = plan_fold(last.inputs[0], [last], CHANNELS)
    assert fold is not None
    np.testing.assert_array_equal(run(model, tmp_path / "planned", x)["y"], before["y"])  # a plan alone does nothing
    fold.apply(SCALE)
    assert len(model.graph) == nodes
    after = run(model, tmp_path / "after", x)
    np.testing.assert_allclose(after["v"], before["v"] / SCALE, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_divides_what_a_gemm_gives(transposed: int, tmp_path: Path) -> None:
    node = NODE("Gemm", ["flat", "u", "b"], ["p"], name="p", transB=transposed)
    shapes = [NODE("Squeeze", ["x", "zero"], ["flat"], name="flat"), node, NODE("Relu", ["p"], ["v"], name="v")]
    CONSTANTS["zero"] = np.array([0], np.int64)
    model = make_model(tmp_path / "m.onnx", shapes)
    x = RNG.normal(size=(1, 5, CHANNELS)).astype(np.float32)
    before = run(model, tmp_path / "before", x)
    last = next(node for node in model.graph if node.name == "last")
    fold = plan_fold(last.inputs[0], [last], CHANNELS)
    assert fold is not None
    fold.apply(SCALE)
    np.testing.assert_allclose(run(model, tmp_path / "after", x)["v"], before["v"] / SCALE, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", REFUSED[case])
    last = next(node for node in model.graph if node.name == "last")
    assert plan_fold(last.inputs[0], [last], CHANNELS) is None


def test_refuses_another_width_and_an_input(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", FOLDABLE["MatMul"])
    last = next(node for node in model.graph if node.name == "last")
    assert plan_fold(last.inputs[0], [last], CHANNELS + 1) is None
    assert plan_fold(model.graph.inputs[0], [last], CHANNELS) is None


def test_a_constant_that_others_take_is_copied(tmp_path: Path) -> None:
    nodes = [
        NODE("MatMul", ["x", "u"], ["p"], name="p"),
        NODE("MatMul", ["p", "u"], ["v"], name="v"),
        NODE("Mul", ["x", "g"], ["elsewhere"], name="elsewhere"),
    ]
    model = make_model(tmp_path / "m.onnx", nodes)
    x = RNG.normal(size=(2, 3, CHANNELS)).astype(np.float32)
    before = run(model, tmp_path / "before", x)
    last = next(node for node in model.graph if node.name == "last")
    for turn in (1, 2):
        fold = plan_fold(last.inputs[0], [last], CHANNELS)
        assert fold is not None
        fold.apply(SCALE)
        found = run(model, tmp_path / f"after{turn}", x)
        np.testing.assert_allclose(found["v"], before["v"] / SCALE**turn, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["y"], before["y"], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found["elsewhere"], before["elsewhere"])
