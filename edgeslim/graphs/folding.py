"""Moving a vector from a value of a float graph into the weights behind it, without a new node.

Smoothing wants x / s for the input x of a layer, s > 0 a channel, and s W for its weight. Where only layers that want
the same take x, the division can move into constants before it, and costs nothing at run time:

    LayerNormalization and its kin     weight and bias
    MatMul, Gemm of a constant weight  columns of the weight, and the bias
    Mul, Add with constants            the constant (of an Add: and the other operand)
    Mul of two computed values         one of them, as in gated feed-forward layers
    Relu, LeakyRelu, Identity          passed through, since they commute with a positive factor
    attention over values              the values, through the heads' Reshape and Transpose

A value with other users, such as a residual connection, is left alone. Nothing changes but by rounding (Xiao et al.
2022, arXiv 2211.10438, fold into normalizations; the other rules are the same algebra).

Layout: the channels are the last axis of x, and s is float32 [channels].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array

__all__ = ["Fold", "plan_fold"]

STANDARD = ("", "ai.onnx")
NORMALIZATIONS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Operators that end in a product with a vector and a sum: the inputs that hold these."""
PASSED = ("Relu", "LeakyRelu", "Identity", "Dropout")
MAX_DEPTH = 12
HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Constants to be divided along their last axis, as (node, input's index), and the layers that make up for it."""

    graph: ir.Graph
    constants: tuple[tuple[ir.Node, int], ...]
    users: tuple[ir.Node, ...]

    def apply(self, scale: npt.NDArray[np.float32]) -> None:
        """Divides the value by ``scale``, [channels], and multiplies the rows of its users' weights by it."""
        for node, index in self.constants:
            turned = node.op_type == "Gemm" and index == 1 and _number(node, "transB")
            self._multiply(node, index, 1 / (scale[:, None] if turned else scale))
        for node in self.users:
            self._multiply(node, 1, scale if node.op_type == "Gemm" and _number(node, "transB") else scale[:, None])

    def _multiply(self, node: ir.Node, index: int, factor: npt.NDArray[Any]) -> None:
        value = node.inputs[index]
        array = constant_array(value)
        assert value is not None
        assert array is not None
        name = f"{value.name}.folded"
        while name in self.graph.initializers:
            name += "_again"
        tensor = ir.tensor(np.ascontiguousarray(array * factor, np.float32), name=name)
        made = ir.val(name, const_value=tensor)
        self.graph.register_initializer(made)
        node.replace_input_with(index, made)


def plan_fold(value: ir.Value, users: Sequence[ir.Node], channels: int) -> Fold | None:
    """How ``value`` may be divided for ``users``, or ``None`` where it can't, or where others take it too.

    The users are MatMul and Gemm nodes that take it first and a constant weight second.
    """
    node = value.producer()
    graph = None if node is None else node.graph
    if not isinstance(graph, ir.Graph):
        return None
    found = _plan(value, set(users), channels, 0)
    return None if found is None else Fold(graph=graph, constants=tuple(found), users=tuple(users))


def _plan(value: ir.Value, users: set[ir.Node], channels: int, depth: int) -> list[tuple[ir.Node, int]] | None:
    node = value.producer()
    if node is None or depth > MAX_DEPTH or value is not node.outputs[0] or not _used_by(value, users):
        return None
    if node.op_type in NORMALIZATIONS:
        return _plan_normalization(node, channels)
    if node.domain not in STANDARD:
        return None
    if node.op_type in PASSED:
        return _follow(node, 0, channels, depth)
    if node.op_type == "Gemm":
        return _plan_gemm(node, channels)
    if node.op_type in ("MatMul", "Add", "Mul"):
        return _plan_product(node, channels, depth)
    if node.op_type == "Reshape":
        return _plan_heads(node, channels, depth)
    return None


def _plan_normalization(node: ir.Node, channels: int) -> list[tuple[ir.Node, int]] | None:
    indices = [index for index in NORMALIZATIONS[node.op_type] if index < len(node.inputs) and node.inputs[index]]
    if not indices or not all(_fits(node.inputs[index], channels) for index in indices):
        return None
    return [(node, index) for index in indices]


def _plan_gemm(node: ir.Node, channels: int) -> list[tuple[ir.Node, int]] | None:
    weight = constant_array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.dtype != np.float32 or weight.ndim != 2:
        return None
    if weight.shape[0 if _number(node, "transB") else 1] != channels or (
        bias is not None and not _fits(bias, channels)
    ):
        return None
    return [(node, 1)] if bias is None else [(node, 1), (node, 2)]


def _plan_product(node: ir.Node, channels: int, depth: int) -> list[tuple[ir.Node, int]] | None:
    """A MatMul with a weight; an Add of a vector; a Mul of a vector, of a number, or of two computed values."""
    if node.op_type == "MatMul":
        weight = constant_array(node.inputs[1])
        fits = weight is not None and weight.ndim == 2 and weight.dtype == np.float32 and weight.shape[1] == channels
        return [(node, 1)] if fits else None
    known = [index for index, operand in enumerate(node.inputs) if constant_array(operand) is not None]
    if len(known) == 1:
        (index,) = known
        vector = _fits(node.inputs[index], channels)
        if node.op_type == "Mul" and vector:
            return [(node, index)]
        rest = _follow(node, 1 - index, channels, depth)
        if rest is None or (node.op_type == "Add" and not vector) or (not vector and not _scalar(node.inputs[index])):
            return None
        return [*rest, (node, index)] if vector else rest
    if node.op_type == "Mul" and not known and node.inputs[0] is not node.inputs[1]:
        for index in (1, 0):
            found = _follow(node, index, channels, depth)
            if found is not None:
                return found
    return None


def _plan_heads(node: ir.Node, channels: int, depth: int) -> list[tuple[ir.Node, int]] | None:
    """Reshape(Transpose(MatMul(anything, Transpose(Reshape(values))))), the heads' sizes the same at both ends."""
    turned = _producer(node, "Transpose")
    product = None if turned is None else _producer(turned, "MatMul")
    back = None if product is None else _producer(product, "Transpose", 1)
    split = None if back is None else _producer(back, "Reshape")
    if (
        turned is None
        or product is None
        or back is None
        or split is None
        or constant_array(product.inputs[1]) is not None
    ):
        return None
    for inner, outer in ((turned, node), (product, turned), (back, product), (split, back)):
        if not _used_by(inner.outputs[0], {outer}):
            return None
    heads, size = _last_sizes(split.inputs[1])
    merged = _last_sizes(node.inputs[1])[1]
    plain = all(_order(item) == HEADS_FIRST for item in (turned, back))
    if not plain or min(heads, size) < 1 or heads * size != channels or merged not in (channels, -1):
        return None
    return _follow(split, 0, channels, depth)


def _follow(node: ir.Node, index: int, channels: int, depth: int) -> list[tuple[ir.Node, int]] | None:
    value = node.inputs[index]
    return None if value is None else _plan(value, {node}, channels, depth + 1)


def _used_by(value: ir.Value, users: set[ir.Node]) -> bool:
    """Whether only ``users`` take a value; what asks for its shape alone doesn't count."""
    return not value.is_graph_output() and all(use.node in users or use.node.op_type == "Shape" for use in value.uses())


def _producer(node: ir.Node, kind: str, index: int = 0) -> ir.Node | None:
    value = node.inputs[index]
    made = None if value is None else value.producer()
    return made if made is not None and made.op_type == kind and made.domain in STANDARD else None


def _fits(value: ir.Value | None, channels: int) -> bool:
    """Whether a value is a constant that has one number a channel."""
    array = constant_array(value)
    return (
        array is not None and array.dtype == np.float32 and array.ndim > 0 and array.size == array.shape[-1] == channels
    )


def _scalar(value: ir.Value | None) -> bool:
    array = constant_array(value)
    return array is not None and array.size == 1


def _number(node: ir.Node, key: str) -> int:
    found = node.attributes.get(key)
    return 0 if found is None else found.as_int()


def _order(node: ir.Node) -> list[int]:
    found = node.attributes.get("perm")
    return [] if found is None else list(found.as_ints())


def _last_sizes(shape: ir.Value | None) -> tuple[int, int]:
    """The last two dimensions of a shape that a Reshape takes; -1 for what isn't known."""
    known = constant_array(shape)
    if known is not None:
        sizes = [int(size) for size in known.ravel()]
    else:
        node = None if shape is None else shape.producer()
        if node is None or node.op_type != "Concat":
            return -1, -1
        pieces = [constant_array(value) for value in node.inputs]
        sizes = [size for piece in pieces for size in ([-1] if piece is None else [int(one) for one in piece.ravel()])]
    return (sizes[-2], sizes[-1]) if len(sizes) > 1 else (-1, -1)
