"""The weights of a graph that compression may change, each once, however many nodes share it.

A weight is the constant float32 operand of a MatMul (its second one), Gemm, Conv or Gather (axis 0), found through
Identity and Transpose nodes in the main graph. Whatever else is large and constant is told among the skipped, by name
and with the reason: operands of an LSTM, what a subgraph (If, Loop, Scan) sees, what is quantized already.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array
from edgeslim.graphs.int8_forms import attribute

__all__ = [
    "KINDS",
    "Use",
    "Weight",
    "add_constant",
    "attribute",
    "find_foreign",
    "find_weights",
    "node_name",
    "write_weight",
]

KINDS = ("MatMul", "Gemm", "Conv", "Gather")
_OPERAND = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
_FOREIGN = ("it belongs to ", "it is quantized already", "it is used inside ")
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, kw_only=True)
class Use:
    """A node that takes the weight; ``transposed`` where it sees the stored matrix's transpose as [in, out]."""

    node: ir.Node
    kind: str
    transposed: bool


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant as it is stored: ``array`` float32, ``value`` the initializer or the Constant's output."""

    name: str
    value: ir.Value
    array: npt.NDArray[np.float32]
    uses: tuple[Use, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of nodes that use it, each once."""
        return tuple(dict.fromkeys(use.kind for use in self.uses))

    @property
    def layer(self) -> str:
        """The name of the first node that uses it."""
        return node_name(self.uses[0].node)

    @property
    def sources(self) -> tuple[ir.Value, ...]:
        """What is multiplied with it, in each of its uses."""
        return tuple(value for use in self.uses if (value := use.node.inputs[0]) is not None)

    def obstacle_to_matrix(self) -> str:
        """Why it can't be seen as one matrix [in, out], or an empty string."""
        if len({(use.kind, use.transposed) for use in self.uses}) > 1:
            return "it is shared by nodes that see it differently: " + ", ".join(self.kinds)
        use = self.uses[0]
        if use.kind == "Gather":
            return "a table has no inputs to multiply"
        if use.kind == "Conv":
            return "" if attribute(use.node, "group", 1) == 1 else "a grouped convolution"
        return "" if self.array.ndim == 2 else f"it has {self.array.ndim} dimensions, not 2"

    def matrix(self) -> npt.NDArray[np.float32]:
        """[in, out]; a convolution's inputs are (channel, row, column) of its kernel."""
        return np.asarray(self.matrix_of(self.array), np.float32)

    def matrix_of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Any array of the stored shape, laid out as ``matrix()``."""
        if self.uses[0].kind == "Conv":
            return array.reshape(len(array), -1).T
        return array.T if self.uses[0].transposed else array

    def from_matrix(self, matrix: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The array to store for ``matrix``, which is laid out as ``matrix()``."""
        turned = matrix.T if self.uses[0].kind == "Conv" or self.uses[0].transposed else matrix
        return np.ascontiguousarray(turned.reshape(self.array.shape), np.float32)


def find_weights(
    model: ir.Model,
    skipped: dict[str, str],
    *,
    kinds: Collection[str] = KINDS,
    min_elements: int = 1024,
    keep: Sequence[str] = (),
) -> list[Weight]:
    """The weights used by nodes of ``kinds``, in the graph's order; the reason for each other goes into ``skipped``.

    ``keep`` are patterns (``*`` allowed) of names of weights or of the nodes that use them, which stay as they are.
    Constants of fewer than ``min_elements`` that are no operand of such a node are not mentioned.
    """
    graph = model.graph
    inner = _used_inside(graph)
    roots: dict[ir.Value, list[Use | str]] = {}
    for node in graph:
        for position, operand in enumerate(node.inputs):
            root = None if operand is None else _root(operand)
            if root is None or operand is None or (node.op_type in ("Identity", "Transpose") and _is_plain(node)):
                continue
            roots.setdefault(root, []).append(_use(node, position, operand))
    found = []
    for root, uses in roots.items():
        tensor = root.const_value
        if tensor is None or (tensor.size < min_elements and not any(isinstance(use, Use) for use in uses)):
            continue
        name = root.name or ""
        reason = _obstacle(root, uses, inner, kinds, min_elements, keep)
        if reason:
            skipped[name] = reason
        else:
            named = tuple(use for use in uses if isinstance(use, Use))
            found.append(Weight(name=name, value=root, array=tensor.numpy(), uses=named))
    for value, reason in inner.items():
        if value not in roots and value.const_value is not None and value.const_value.size >= min_elements:
            skipped[value.name or ""] = reason
    return found


def find_foreign(model: ir.Model) -> dict[str, str]:
    """What a stage that walks the main graph's layers never meets, and why: of LSTMs, subgraphs, quantized parts."""
    skipped: dict[str, str] = {}
    find_weights(model, skipped)
    return {name: reason for name, reason in skipped.items() if reason.startswith(_FOREIGN)}


def write_weight(weight: Weight, array: npt.NDArray[Any]) -> None:
    """Puts ``array``, of the stored shape, in the weight's place for all that use it."""
    stored = np.ascontiguousarray(array, np.float32).reshape(weight.array.shape)
    tensor = ir.tensor(stored, name=weight.name)
    node = weight.value.producer()
    if node is not None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    weight.value.const_value = tensor


def node_name(node: ir.Node) -> str:
    """The node's name, or else that of its first output."""
    return node.name or node.outputs[0].name or node.op_type


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """A new initializer; a number is added to a ``name`` that is taken."""
    free, count = name, 1
    while free in graph.initializers:
        count += 1
        free = f"{name}.{count}"
    stored = np.ascontiguousarray(array).reshape(np.shape(array))
    value = ir.val(free, const_value=ir.tensor(stored, name=free))
    graph.register_initializer(value)
    return value


def _is_plain(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _root(value: ir.Value) -> ir.Value | None:
    """The initializer or Constant that ``value`` is, seen through Identity and Transpose."""
    if value.is_graph_input() and not value.is_initializer():
        return None
    node = value.producer()
    if node is None:
        return value if value.is_initializer() and value.const_value is not None else None
    if not _is_plain(node):
        return None
    if node.op_type == "Constant":
        if value.const_value is None and "value" in node.attributes:
            value.const_value = node.attributes["value"].as_tensor()
        return value if value.const_value is not None else None
    if node.op_type in ("Identity", "Transpose") and node.inputs[0] is not None:
        return _root(node.inputs[0])
    return None


def _use(node: ir.Node, position: int, operand: ir.Value) -> Use | str:
    """How ``node`` uses the constant, or why that is not a weight."""
    name = node_name(node)
    if node.op_type in _RECURRENT:
        return f"it belongs to {name}, an {node.op_type}"
    if node.op_type in ("DequantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QLinearConv"):
        return f"it is quantized already: {name} is a {node.op_type}"
    if not _is_plain(node) or node.op_type not in KINDS:
        return f"it is an operand of {name}, a {node.op_type}"
    if position != _OPERAND[node.op_type]:
        return f"it is not the weight of {name}, a {node.op_type}, but its operand {position}"
    if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
        return f"{name} gathers along axis {int(attribute(node, 'axis', 0))}"
    if node.op_type == "Gemm" and (
        attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0)
    ):
        return f"{name} is a Gemm with alpha, beta or transA"
    turned = _turned(operand)
    if turned is None or (turned and node.op_type in ("Conv", "Gather")):
        return f"{name} sees it transposed"
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        turned = not turned
    return Use(node=node, kind=node.op_type, transposed=turned)


def _turned(operand: ir.Value) -> bool | None:
    """Whether a matrix was transposed on its way; ``None`` for other permutations."""
    turned = False
    node = operand.producer()
    while node is not None and node.op_type in ("Identity", "Transpose"):
        value = node.inputs[0]
        assert value is not None
        if node.op_type == "Transpose":
            order = node.attributes.get("perm")
            if order is not None and tuple(order.as_ints()) != (1, 0):
                if tuple(order.as_ints()) != tuple(range(len(order.as_ints()))):
                    return None
            else:
                turned = not turned
        node = value.producer()
    return turned


def _obstacle(
    root: ir.Value,
    uses: Sequence[Use | str],
    inner: Mapping[ir.Value, str],
    kinds: Collection[str],
    min_elements: int,
    keep: Sequence[str],
) -> str:
    tensor = root.const_value
    assert tensor is not None
    if root in inner:
        return inner[root]
    for use in uses:
        if isinstance(use, str):
            return use
    if root.is_graph_input():
        return "it is an input of the graph, too: whoever runs the model may replace it"
    if root.is_graph_output():
        return "it is an output of the graph, too"
    named = [use for use in uses if isinstance(use, Use)]
    other = [use.kind for use in named if use.kind not in kinds]
    if other:
        return f"it is the weight of a {other[0]}, and the stage takes {', '.join(kinds)}"
    names = [root.name or "", *(node_name(use.node) for use in named)]
    if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in keep):
        return "kept by the recipe"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"it is {tensor.dtype.name.lower()}, not float32"
    if len(tensor.shape.numpy()) < 2:
        return "it has fewer than 2 dimensions"
    if tensor.size < min_elements:
        return f"it has {tensor.size} elements, fewer than min_elements = {min_elements}"
    if any(use.transposed for use in named) and len(tensor.shape.numpy()) != 2:
        return "it is transposed and no matrix"
    return "" if np.isfinite(_array(root)).all() else "it holds NaN or infinite values"


def _array(root: ir.Value) -> npt.NDArray[Any]:
    array = constant_array(root)
    assert array is not None
    return array


def _used_inside(graph: ir.Graph) -> dict[ir.Value, str]:
    """The outer constants that a subgraph sees, and the large ones of its own, each with the reason."""
    found: dict[ir.Value, str] = {}
    for owner in graph:
        for subgraph in _subgraphs(owner):
            reason = f"it is used inside {node_name(owner)}, a {owner.op_type}"
            for value in subgraph.initializers.values():
                found[value] = reason
            for node in subgraph:
                for operand in node.inputs:
                    root = None if operand is None else _root(operand)
                    if root is not None:
                        found[root] = reason
            for output in subgraph.outputs:
                root = _root(output)
                if root is not None:
                    found[root] = reason
    return found


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for item in node.attributes.values():
        if isinstance(item, ir.Attr) and item.type == ir.AttributeType.GRAPH:
            graphs = [item.as_graph()]
        elif isinstance(item, ir.Attr) and item.type == ir.AttributeType.GRAPHS:
            graphs = list(item.as_graphs())
        else:
            continue
        for graph in graphs:
            yield graph
            for inner in graph:
                yield from _subgraphs(inner)
