"""Graphs run by PyTorch: each operator against ONNX Runtime, gradients against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeslim.errors import BadInputError
from edgeslim.export import export_huggingface
from edgeslim.graphs.graph import load_graph
from edgeslim.session import open_runner
from edgeslim.torch_graph import TorchGraph, output_gradients

F, INT = np.float32, np.int64
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(F)
POSITIVE = np.abs(X) + F(0.5)
PICTURE = np.random.default_rng(1).normal(size=(1, 2, 7, 6)).astype(F)
LINE = np.random.default_rng(2).normal(size=(1, 2, 9)).astype(F)
NUMBERS = np.array([[5, -7, 3], [-1, 4, 2]], INT)
KERNEL = np.random.default_rng(3).normal(size=(4, 2, 3, 3)).astype(F)


def ints(*values: int) -> np.ndarray:
    return np.array(values, INT)


Case = tuple[str, list[Any], dict[str, Any]]
UNARY = ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN", "Mish", "Neg", "Relu"]
UNARY += ["Round", "Sigmoid", "Sign", "Sin", "Softplus", "Tanh", "Elu", "LeakyRelu", "HardSigmoid", "Gelu", "Dropout"]
CASES: list[Case] = [
    *((name, [X], {}) for name in UNARY),
    *((name, [POSITIVE], {}) for name in ("Log", "Sqrt", "Reciprocal")),
    *((name, [X, X[:1, :, :1] * F(0.3)], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    *((name, [X, X[::-1].copy()], {}) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")),
    *((name, [X > 0, X > 1], {}) for name in ("And", "Or")),
    *((f"Reduce{kind}", [X, ints(-1, 0)], {"keepdims": 0}) for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L2")),
    ("Not", [X > 0], {}),
    ("ReduceMean", [X], {}),
    ("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}),
    ("Div", [NUMBERS, ints(2, 2, 2)], {}),
    ("Mod", [NUMBERS, ints(3, 3, 3)], {}),
    ("Mod", [X, np.full_like(X, 0.7)], {"fmod": 1}),
    ("Pow", [POSITIVE, np.array(1.7, F)], {}),
    ("Pow", [X, np.array(2, INT)], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("PRelu", [X, np.array([0.1, 0.2, 0.3, 0.4], F)], {}),
    ("Clip", [X, np.array(-0.5, F), np.array(0.7, F)], {}),
    ("Clip", [X, None, np.array(0.7, F)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("LogSoftmax", [X], {}),
    ("ArgMax", [X], {"axis": -1, "keepdims": 0}),
    ("MatMul", [X, X.transpose(0, 2, 1).copy()], {}),
    ("Gemm", [X[0], X[1], X[0, :, :1]], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [X[0], X[1], None], {"transA": 1}),
    ("LayerNormalization", [X, X[0, 0], X[1, 1]], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, POSITIVE[0]], {"axis": 1}),
    ("BatchNormalization", [PICTURE, *(np.array(pair, F) for pair in ((1, 2), (0, 1), (3, 4), (5, 6)))], {}),
    ("InstanceNormalization", [PICTURE, np.array([1, 2], F), np.array([3, 4], F)], {}),
    ("Einsum", [X, X], {"equation": "bij,bkj->bik"}),
    ("Where", [X > 0, X, X[:1]], {}),
    ("Cast", [X * 9], {"to": TensorProto.INT64}),
    ("Cast", [NUMBERS], {"to": TensorProto.BOOL}),
    ("CastLike", [NUMBERS, X], {}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Size", [X], {}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Flatten", [X], {"axis": -1}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 0, 2]}),
    ("Unsqueeze", [X, ints(-1, 0)], {}),
    ("Squeeze", [X[:1, :, :1], ints(0)], {}),
    ("Squeeze", [X[:1, :, :1]], {}),
    ("Concat", [X, X], {"axis": -1}),
    ("Split", [X, ints(1, 3)], {"axis": 2}),
    ("Slice", [X, ints(-2, 0), ints(2**62, 3), ints(2, 1), ints(1, 2)], {}),
    ("Slice", [X, ints(-1), ints(-(2**62)), ints(1), ints(-2)], {}),
    ("Slice", [X, ints(1), ints(1)], {}),
    ("Gather", [X, np.array([[0, -1], [1, 2]], INT)], {"axis": 1}),
    ("Gather", [X, np.array(-2, INT)], {"axis": 1}),
    ("GatherElements", [X, np.array([[[0, -1, 1, 0]]], INT)], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 1], [1, -1]], INT)], {}),
    ("ScatterND", [X, np.array([[0, 1], [1, 2]], INT), X[0, :2]], {}),
    ("Expand", [X[:, :1], ints(3, 1)], {}),
    ("Tile", [X, ints(2, 1, 3)], {}),
    ("Pad", [X, ints(0, 1, 0, 0, 0, 2), np.array(1.5, F)], {}),
    ("Pad", [X, ints(1, 2), None, ints(2)], {}),
    ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    ("Range", [np.array(2, INT), np.array(11, INT), np.array(3, INT)], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(np.array([7], INT))}),
    ("Constant", [], {"value": numpy_helper.from_array(X)}),
    ("Constant", [], {"value_floats": [1.0, 2.5]}),
    ("Trilu", [X, np.array(1, INT)], {"upper": 0}),
    ("Trilu", [X], {}),
    ("CumSum", [X, np.array(1, INT)], {}),
    ("CumSum", [X, np.array(-1, INT)], {"reverse": 1, "exclusive": 1}),
    ("Conv", [PICTURE, KERNEL, np.array([1, 2, 3, 4], F)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [PICTURE, KERNEL[:, :1].copy()], {"group": 2, "dilations": [2, 1]}),
    ("Conv", [PICTURE, KERNEL], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [LINE, KERNEL[..., 0].copy()], {"auto_pad": "SAME_LOWER", "strides": [2]}),
    ("MaxPool", [PICTURE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
    ("MaxPool", [LINE], {"kernel_shape": [3], "dilations": [2]}),
    ("AveragePool", [PICTURE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
    ("AveragePool", [PICTURE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [LINE], {"kernel_shape": [4], "strides": [2]}),
    ("GlobalAveragePool", [PICTURE], {}),
    ("GlobalMaxPool", [LINE], {}),
]


def one_node(case: Case, folder: Path, opset: int = 20) -> tuple[Path, dict[str, np.ndarray]]:
    """The model of a case, its operands inputs all of them, and what to feed it."""
    kind, operands, attributes = case
    feed = {f"in{index}": value for index, value in enumerate(operands) if value is not None}
    names = ["" if value is None else f"in{index}" for index, value in enumerate(operands)]
    outputs = ["out0", "out1"] if kind == "Split" else ["out0"]
    node = helper.make_node(kind, names, outputs, name="the_node", **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, made)
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    )
    onnx.save(model, folder / "one.onnx")
    return folder / "one.onnx", feed


@pytest.mark.parametrize("case", CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)])
def test_an_operator_gives_what_onnx_runtime_gives(case: Case, tmp_path: Path) -> None:
    path, feed = one_node(case, tmp_path)
    wanted = open_runner(path)(feed)
    found = TorchGraph(load_graph(path)).run(feed)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].numpy().dtype == value.dtype
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    from edgeslim.torch_graph.arithmetic import arithmetic_operators
    from edgeslim.torch_graph.shapes import shape_operators
    from edgeslim.torch_graph.windows import window_operators

    known = {*arithmetic_operators(), *shape_operators(), *window_operators()}
    assert known - {case[0] for case in CASES} == {"RMSNormalization"}


def test_root_mean_square_norm_by_hand() -> None:
    node = ir.node("RMSNormalization", [ir.val("x"), ir.val("scale")], {"epsilon": 0.0}, name="norm")
    graph = ir.Graph(list(node.inputs), list(node.outputs), nodes=[node], opset_imports={"": 23})
    node.outputs[0].name = "y"
    found = TorchGraph(ir.Model(graph, ir_version=10)).run({"x": np.array([[3, 4]], F), "scale": np.array([1, 2], F)})
    np.testing.assert_allclose(found["y"].numpy(), np.array([[3, 8]]) / np.sqrt(12.5), rtol=1e-6)


def test_softmax_of_old_opsets_flattens(tmp_path: Path) -> None:
    path, feed = one_node(("Softmax", [X], {}), tmp_path, opset=11)
    np.testing.assert_allclose(TorchGraph(load_graph(path)).run(feed)["out0"], open_runner(path)(feed)["out0"], 1e-5)


@pytest.fixture(scope="module")
def encoder(bert_module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeslim.core import Batch

    ids = np.array([[2, 7, 9, 11, 3, 0]], INT)
    feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(INT), "token_type_ids": np.zeros_like(ids)}
    folder = tmp_path_factory.mktemp("encoder") / "float"
    return export_huggingface(
        bert_module, [Batch(feed=feed, rows=1)], classifier=False, opset_max=21, folder=folder
    ).path


def tokens() -> dict[str, np.ndarray]:
    ids = np.array([[2, 8, 12, 10, 30, 3], [2, 9, 3, 0, 0, 0]], INT)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(INT), "token_type_ids": np.zeros_like(ids)}


def test_an_exported_encoder_agrees_with_onnx_runtime(encoder: Path) -> None:
    found = TorchGraph(load_graph(encoder)).run(tokens())
    wanted = open_runner(encoder)(tokens())
    np.testing.assert_allclose(found["last_hidden_state"].numpy(), wanted["last_hidden_state"], atol=1e-5)


def test_gradients_agree_with_finite_differences(encoder: Path) -> None:
    graph = TorchGraph(load_graph(encoder))
    name = next(name for name, value in graph.weights.items() if value.dim() == 2 and "MatMul" in name)
    weights = {key: value.double() for key, value in graph.weights.items()}
    leaf = weights[name].clone().requires_grad_()
    direction = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return graph.run(tokens(), weights={**weights, name: weight})["last_hidden_state"][:, :, ::3].exp().sum()

    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    step = 1e-4
    slope = (loss(leaf + step * direction) - loss(leaf - step * direction)) / (2 * step)
    assert (gradient.flatten() @ direction.flatten()).item() == pytest.approx(slope.item(), rel=1e-4)


def linear_model(tmp_path: Path) -> tuple[Path, np.ndarray]:
    weight = np.random.default_rng(4).normal(size=(4, 5)).astype(F)
    nodes = [helper.make_node("Tanh", ["x"], ["hidden"]), helper.make_node("MatMul", ["hidden", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 5])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "l.onnx")
    return tmp_path / "l.onnx", weight


def test_projected_gradients_estimate_the_square_of_the_jacobian(tmp_path: Path) -> None:
    """y = h W: the mean of the gradients' outer products is W Wᵀ."""
    path, weight = linear_model(tmp_path)
    feed = {"x": X[0]}
    found = [item["hidden"] for item in output_gradients(TorchGraph(load_graph(path)), [feed], ["hidden"], probes=3000)]
    flat = np.concatenate(found)
    np.testing.assert_allclose(flat.T @ flat / len(flat), weight @ weight.T, atol=0.25)
    again = next(iter(output_gradients(TorchGraph(load_graph(path)), [feed], ["hidden"])))
    np.testing.assert_array_equal(again["hidden"], found[0])


def test_gradients_by_an_input_and_of_an_objective(tmp_path: Path) -> None:
    path, weight = linear_model(tmp_path)
    feed = {"x": np.zeros((1, 4), F)}
    graph = TorchGraph(load_graph(path))
    objective = lambda outputs, given: outputs["y"][:, 1:2] * float(len(given["x"]))  # noqa: E731
    (found,) = output_gradients(graph, [feed], ["x", "hidden"], objective=objective)
    ratio = found["x"] / weight[:, 1]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)  # one number times the second column
    np.testing.assert_allclose(found["hidden"], found["x"], rtol=1e-5)  # tanh has slope 1 at 0


def test_operands_may_be_changed_on_the_way(tmp_path: Path) -> None:
    path, weight = linear_model(tmp_path)
    graph = TorchGraph(load_graph(path))

    def double(node: ir.Node, operands: list) -> list:
        return [operands[0] * 2, operands[1]] if node.op_type == "MatMul" else operands

    found = graph.run({"x": X[0]}, on_operands=double, keep=("hidden",))
    np.testing.assert_allclose(found["y"], 2 * np.tanh(X[0]) @ weight, rtol=1e-4)
    np.testing.assert_allclose(found["hidden"], np.tanh(X[0]), rtol=1e-5)


def test_refusals_name_the_place(tmp_path: Path, refuses: Any) -> None:
    path, _ = linear_model(tmp_path)
    graph = TorchGraph(load_graph(path))
    with refuses(BadInputError, where="feed", got="no input x"):
        graph.run({})
    with refuses(BadInputError, where="graph", got="no value nowhere"):
        graph.run({"x": X[0]}, keep=("nowhere",))
    with refuses(BadInputError, where="node_MatMul", got="MatMul of [3, 3], [4, 5]"):
        model = load_graph(path)
        list(model.graph)[1].name = "node_MatMul"
        TorchGraph(model).run({"x": X[0, :, :3]})
    unknown, _ = one_node(("Det", [PICTURE[0, :, :2, :2].copy()], {}), tmp_path)
    with refuses(BadInputError, where="graph", got="Det (first at the_node)", expected="operators"):
        TorchGraph(load_graph(unknown))
    pool, feed = one_node(("MaxPool", [PICTURE], {"kernel_shape": [2, 2], "ceil_mode": 1}), tmp_path)
    with refuses(BadInputError, where="the_node", got="MaxPool: indices or ceil_mode"):
        TorchGraph(load_graph(pool)).run(feed)
