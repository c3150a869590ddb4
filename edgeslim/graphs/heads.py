"""Attention that reads its heads where they lie.

Exporters move the heads of queries, keys and values to the front, [B, S, H, D] to [B, H, S, D], before each product:
three copies a layer. ``com.microsoft.FusedMatMul`` can leave them where they are and step through memory instead, if
the sequence is the first dimension: of an operand [S, B, H, D] its ``transBatchA`` and ``transBatchB`` take [B, H, S,
D]. So what the projections take, which is int8 and small, is turned to [S, B, C] once; with a batch of one that moves
nothing at all. The products are the same numbers::

    x -> MatMulIntegerToFloat -> Reshape -> Transpose -> MatMul
    x -> Transpose -> MatMulIntegerToFloat -> Reshape -> FusedMatMul

Only the integer form is rewritten: the node belongs to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array

__all__ = ["settle_heads"]

MICROSOFT = "com.microsoft"
STANDARD = ("", "ai.onnx")
SEQUENCE_FIRST = [1, 0, 2]
HEADS_FIRST = [0, 2, 1, 3]
KEYS_TURNED = [0, 2, 3, 1]
LAST_SWAPPED = [0, 1, 3, 2]


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """One operand of a product: its Reshape to heads, the projection before it, and whether D comes before S."""

    reshape: ir.Node
    projection: ir.Node
    turned: bool


def settle_heads(graph: ir.Graph) -> int:
    """Rewrites the products of attention in place, and returns how many; nodes that nothing uses stay."""
    sources: dict[ir.Value, ir.Value] = {}
    moved: dict[ir.Node, ir.Value] = {}
    settled = 0
    for node in list(graph):
        if node.op_type != "MatMul" or node.domain not in STANDARD:
            continue
        found = [None if value is None else _find_heads(value) for value in node.inputs]
        if not any(found) or (found[0] is not None and found[0].turned):
            continue
        operands, attributes = list(node.inputs), {"alpha": 1.0}
        for index, (side, heads) in enumerate(zip("AB", found, strict=True)):
            if heads is None:
                continue
            operands[index] = _move(graph, heads, sources, moved)
            attributes[f"transBatch{side}"] = 1
            if heads.turned:
                attributes[f"trans{side}"] = 1
        name = f"{node.name or node.outputs[0].name}.in_place"
        product = ir.node("FusedMatMul", operands, attributes, domain=MICROSOFT, name=name)
        graph.insert_before(node, product)
        _take_over(node.outputs[0], product.outputs[0])
        settled += 1
    if settled:
        graph.opset_imports.setdefault(MICROSOFT, 1)
    return settled


def _move(
    graph: ir.Graph, heads: _Heads, sources: dict[ir.Value, ir.Value], moved: dict[ir.Node, ir.Value]
) -> ir.Value:
    """The heads of an operand as [S, B, H, D]; shared by all that take them."""
    if heads.reshape in moved:
        return moved[heads.reshape]
    source = heads.projection.inputs[0]
    target = constant_array(heads.reshape.inputs[1])
    assert source is not None
    assert target is not None
    if source not in sources:
        turn = ir.node("Transpose", [source], {"perm": SEQUENCE_FIRST}, name=f"{source.name}.sequence_first")
        graph.insert_before(heads.projection, turn)
        sources[source] = turn.outputs[0]
    projection = ir.node(
        heads.projection.op_type,
        [sources[source], *heads.projection.inputs[1:]],
        heads.projection.attributes,
        domain=heads.projection.domain,
        name=f"{heads.projection.name or heads.projection.outputs[0].name}.sequence_first",
    )
    swapped = np.array([target[1], target[0], target[2], target[3]], np.int64)
    name = f"{heads.reshape.name or heads.reshape.outputs[0].name}.sequence_first"
    shape = ir.val(name, const_value=ir.tensor(swapped, name=name))
    graph.register_initializer(shape)
    reshape = ir.node("Reshape", [projection.outputs[0], shape], name=name)
    graph.insert_after(heads.projection, [projection, reshape])
    moved[heads.reshape] = reshape.outputs[0]
    return reshape.outputs[0]


def _find_heads(value: ir.Value) -> _Heads | None:
    """The heads behind a Transpose, or two, of a projection's Reshape that nothing else takes."""
    perm, source = _transposed(value)
    if perm == LAST_SWAPPED and source is not None:
        inner, source = _transposed(source)
        perm = KEYS_TURNED if inner == HEADS_FIRST else None
    if perm not in (HEADS_FIRST, KEYS_TURNED) or source is None:
        return None
    reshape = source.producer() if _used_once(source) else None
    if reshape is None or reshape.op_type != "Reshape" or reshape.domain not in STANDARD:
        return None
    literal = reshape.attributes.get("allowzero")
    if literal is not None and literal.as_int():
        return None
    target, projected = constant_array(reshape.inputs[1]), reshape.inputs[0]
    if target is None or target.size != 4 or projected is None or not _used_once(projected):
        return None
    projection = projected.producer()
    if projection is None or projection.op_type != "MatMulIntegerToFloat":
        return None
    if target[2] <= 0 or target[3] <= 0:  # a 0 or -1 there could mean what is no longer so
        return None
    return _Heads(reshape=reshape, projection=projection, turned=perm == KEYS_TURNED)


def _transposed(value: ir.Value) -> tuple[Sequence[int] | None, ir.Value | None]:
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.domain not in STANDARD or value.is_graph_output():
        return None, None
    perm = node.attributes.get("perm")
    return (None if perm is None else list(perm.as_ints())), node.inputs[0]


def _used_once(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(list(value.uses())) == 1


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape, name = old.type, old.shape, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = name, f"{name}.moved"
