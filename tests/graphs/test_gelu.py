"""GELUs as exporters write them become one node that gives nearly the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from edgeslim.graphs.gelu import replace_gelus
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner

NODE = helper.make_node
ERF = [
    NODE("Div", ["x", "root"], ["d"], name="d"),
    NODE("Erf", ["d"], ["e"], name="e"),
    NODE("Add", ["e", "one"], ["a"], name="a"),
]
FORMS = {
    "half last": [*ERF, NODE("Mul", ["x", "a"], ["m"], name="m"), NODE("Mul", ["m", "half"], ["y"], name="y")],
    "half of x": [*ERF, NODE("Mul", ["half", "x"], ["m"], name="m"), NODE("Mul", ["m", "a"], ["y"], name="y")],
    "half of the rest": [*ERF, NODE("Mul", ["a", "half"], ["m"], name="m"), NODE("Mul", ["x", "m"], ["y"], name="y")],
    "times the inverse root": [
        NODE("Mul", ["x", "inverse"], ["d"], name="d"),
        *ERF[1:],
        NODE("Mul", ["x", "a"], ["m"], name="m"),
        NODE("Div", ["m", "two"], ["y"], name="y"),
    ],
    "one node": [NODE("Gelu", ["x"], ["y"], name="y")],
}
OTHER = {
    "another factor": [*ERF, NODE("Mul", ["x", "a"], ["m"], name="m"), NODE("Mul", ["m", "one"], ["y"], name="y")],
    "another value": [
        *ERF,
        NODE("Neg", ["x"], ["n"], name="n"),
        NODE("Mul", ["n", "a"], ["m"], name="m"),
        NODE("Mul", ["m", "half"], ["y"], name="y"),
    ],
    "erf alone": [*ERF[:2], NODE("Neg", ["e"], ["y"], name="y")],
}


def make_model(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    numbers = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5, "two": 2.0}
    taken = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in numbers.items() if k in taken]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_becomes_one_node(form: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", FORMS[form])
    model = load_graph(path)
    assert replace_gelus(model.graph) == 1
    passes.RemoveUnusedNodesPass()(model)
    assert Counter(node.op_type for node in model.graph) == {"FastGelu": 1}
    made, _ = save_graph(model, tmp_path / "out")
    x = np.linspace(-8, 8, 4001).astype(np.float32)
    found, wanted = (open_runner(one)({"x": x})["y"] for one in (made, path))
    assert 0 < np.abs(found - wanted).max() < 5e-4
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)))
    np.testing.assert_allclose(found, tanh, atol=1e-5)


@pytest.mark.parametrize("form", OTHER)
def test_leaves_other_functions_alone(form: str, tmp_path: Path) -> None:
    model = load_graph(make_model(tmp_path / "m.onnx", OTHER[form]))
    before = len(model.graph)
    assert replace_gelus(model.graph) == 0
    assert len(model.graph) == before
