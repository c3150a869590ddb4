"""Computed targets of Reshapes become constants where that is provably the same, and only there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.graphs.reshapes import settle_reshapes
from edgeslim.session import open_runner

NODE = helper.make_node
RNG = np.random.default_rng(0)
CONSTANTS = {
    "w": RNG.normal(size=(6, 6)).astype(np.float32),
    "b": RNG.normal(size=6).astype(np.float32),
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "first": np.array([0], np.int64),
    "rest": np.array([-1], np.int64),
    "two": np.array([2], np.int64),
    "three": np.array([3], np.int64),
    "six": np.array([6], np.int64),
}


def dimension(value: str, index: str, name: str) -> list[onnx.NodeProto]:
    return [
        NODE("Shape", [value], [f"{name}_shape"], name=f"{name}_shape"),
        NODE("Gather", [f"{name}_shape", index], [f"{name}_size"], name=f"{name}_size"),
        NODE("Unsqueeze", [f"{name}_size", "first"], [name], name=name),
    ]


LINEAR = [
    NODE("MatMul", ["x", "w"], ["p"], name="p"),
    NODE("Add", ["b", "p"], ["q"], name="q"),
]
SETTLED = {
    "heads of a projection": [
        *dimension("x", "zero", "n"),
        *LINEAR,
        NODE("Concat", ["n", "rest", "two", "three"], ["t"], name="t", axis=0),
        NODE("Reshape", ["q", "t"], ["y"], name="r"),
    ],
    "two dimensions of its own": [
        *LINEAR,
        *dimension("q", "zero", "n"),
        *dimension("q", "one", "s"),
        NODE("Concat", ["n", "s", "six"], ["t"], name="t", axis=0),
        NODE("Reshape", ["q", "t"], ["y"], name="r"),
    ],
}
LEFT = {
    "another place": [
        *dimension("x", "one", "s"),
        *LINEAR,
        NODE("Concat", ["s", "rest", "six"], ["t"], name="t", axis=0),
        NODE("Reshape", ["q", "t"], ["y"], name="r"),
    ],
    "another value": [
        *dimension("z", "zero", "n"),
        NODE("Concat", ["n", "rest", "six"], ["t"], name="t", axis=0),
        NODE("Reshape", ["x", "t"], ["y"], name="r"),
    ],
    "the axis that a weight replaces": [
        NODE("MatMul", ["x", "w"], ["p"], name="p"),
        NODE("Transpose", ["p"], ["q"], name="q", perm=[2, 0, 1]),
        *dimension("x", "zero", "n"),
        NODE("Concat", ["n", "rest"], ["t"], name="t", axis=0),
        NODE("Reshape", ["q", "t"], ["y"], name="r"),
    ],
    "a sum of two computed values": [
        *dimension("x", "zero", "n"),
        NODE("Add", ["x", "z"], ["q"], name="q"),
        NODE("Concat", ["n", "rest", "six"], ["t"], name="t", axis=0),
        NODE("Reshape", ["q", "t"], ["y"], name="r"),
    ],
}


def make_model(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    taken = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in taken]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "s", 6])
        for name in ("x", "z")
        if name in taken or name == "x"
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("case", SETTLED)
def test_settles(case: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", SETTLED[case])
    model = load_graph(path)
    shapes = [value.shape for node in model.graph for value in node.outputs]
    assert settle_reshapes(model) == 1
    assert shapes == [value.shape for node in model.graph for value in node.outputs], "no shape is left in the model"
    passes.RemoveUnusedNodesPass()(model)
    assert not {"Shape", "Gather", "Concat"} & set(Counter(node.op_type for node in model.graph))
    made, _ = save_graph(model, tmp_path / "out")
    for shape in ((1, 4, 6), (3, 2, 6)):
        x = RNG.normal(size=shape).astype(np.float32)
        found, wanted = (open_runner(one)({"x": x})["y"] for one in (made, path))
        np.testing.assert_array_equal(found, wanted)
    assert settle_reshapes(model) == 0


@pytest.mark.parametrize("case", LEFT)
def test_leaves_alone(case: str, tmp_path: Path) -> None:
    model = load_graph(make_model(tmp_path / "m.onnx", LEFT[case]))
    assert settle_reshapes(model) == 0
