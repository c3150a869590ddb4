"""Reshapes whose target is computed from shapes, given constants instead.

Exporters write x.view(x.size(0), -1, heads, size) as Shape, Gather, Unsqueeze and Concat. In a small model these nodes
of a few bytes take as long as half of all inputs' quantization. ONNX has a constant for "as it was": a 0 copies the
dimension at its place. It is used where the dimension that is asked for provably is the one at that place: both are
followed back, through operators that keep it, to the same axis of the same value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.graphs.graph import constant_array

__all__ = ["settle_reshapes"]

STANDARD = ("", "ai.onnx")
KEEPING = (
    "Cast",
    "Elu",
    "Erf",
    "Gelu",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
)
"""Operators whose first output has their first input's shape."""
ELEMENTWISE = ("Add", "Div", "Mul", "Sub")

Ranks = Mapping[str | None, int]


def settle_reshapes(model: ir.Model) -> int:
    """Gives Reshape nodes constant targets where that changes nothing, in place, and returns how many got one.

    The nodes that computed the targets stay; where nothing else takes them, they are useless now.
    """
    graph = model.graph
    if not any(node.op_type == "Reshape" and constant_array(node.inputs[1]) is None for node in graph):
        return 0
    inferred = model.clone()  # the model itself goes without: shapes that it says change what a runtime fuses
    passes.ShapeInferencePass()(inferred)
    values = [*inferred.graph.inputs, *(value for node in inferred.graph for value in node.outputs)]
    ranks = {value.name: len(value.shape) for value in values if value.shape is not None}
    settled = 0
    for node in graph:
        if node.op_type != "Reshape" or node.domain not in STANDARD or constant_array(node.inputs[1]) is not None:
            continue
        literal = node.attributes.get("allowzero")
        target = _settle(node, ranks) if literal is None or literal.as_int() == 0 else None
        if target is None:
            continue
        name = f"{node.name or node.outputs[0].name}.target"
        value = ir.val(name, const_value=ir.tensor(np.array(target, np.int64), name=name))
        graph.register_initializer(value)
        node.replace_input_with(1, value)
        settled += 1
    return settled


def _settle(node: ir.Node, ranks: Ranks) -> list[int] | None:
    data, shape = node.inputs[0], node.inputs[1]
    concat = None if shape is None else shape.producer()
    if data is None or concat is None or concat.op_type != "Concat" or concat.domain not in STANDARD:
        return None
    target: list[int] = []
    for piece in concat.inputs:
        known = constant_array(piece)
        if known is not None:
            target += [int(size) for size in known.ravel()]
            continue
        source = _dimension(piece)
        if source is None or _origin(*source, ranks) != _origin(data, len(target), ranks):
            return None
        target.append(0)
    known_zero = any(constant_array(piece) is not None and not np.all(constant_array(piece)) for piece in concat.inputs)
    return None if known_zero else target


def _dimension(piece: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The value and axis whose size a Unsqueeze(Gather(Shape(value), axis)) is; the axis counts from the front."""
    unsqueeze = None if piece is None else piece.producer()
    inner = None if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" else unsqueeze.inputs[0]
    gather = None if inner is None else inner.producer()
    if gather is None or gather.op_type != "Gather" or gather.inputs[0] is None:
        return None
    index, shape = constant_array(gather.inputs[1]), gather.inputs[0].producer()
    if index is None or index.size != 1 or int(index.reshape(())) < 0 or shape is None or shape.op_type != "Shape":
        return None
    if shape.attributes or shape.inputs[0] is None:
        return None
    return shape.inputs[0], int(index.reshape(()))


def _origin(value: ir.Value, axis: int, ranks: Ranks) -> tuple[ir.Value, int]:
    """The earliest value and axis, counted from the front, that surely have the size of this one."""
    while True:
        node = value.producer()
        if node is None or node.domain not in STANDARD or value is not node.outputs[0]:
            return value, axis
        source: ir.Value | None = None
        if node.op_type in KEEPING:
            source = node.inputs[0]
        elif node.op_type in ELEMENTWISE:
            source = _beside_vector(node, ranks)
        elif node.op_type == "MatMul":
            weight = constant_array(node.inputs[1])
            given = node.inputs[0]
            if weight is not None and weight.ndim == 2 and given is not None and axis < ranks.get(given.name, 0) - 1:
                source = given
        if source is None:
            return value, axis
        value = source


def _beside_vector(node: ir.Node, ranks: Ranks) -> ir.Value | None:
    """The computed operand of an elementwise node whose other one is a constant of at most one dimension."""
    for index in (0, 1):
        known, other = constant_array(node.inputs[index]), node.inputs[1 - index]
        if known is not None and known.ndim <= 1 and other is not None and ranks.get(other.name, 0) >= 2:
            return other
    return None
