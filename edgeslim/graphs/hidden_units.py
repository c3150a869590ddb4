"""Hidden neurons of an exported graph: where they are made, where they are used, and taking some out.

A site is a MatMul or Gemm whose input comes, through nodes that work on each channel by itself (GELU in any form, ReLU,
a gate's product, biases), from other MatMuls or Gemms alone, and goes nowhere else. A channel that is taken out of all
of these at once is gone: columns of the first matrices, entries of biases, rows of the last.

Layout: matrices [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array
from edgeslim.graphs.graph_weights import Weight, add_constant, attribute, find_weights, node_name

__all__ = ["HiddenSite", "cut_site", "find_sites"]

# fmt: off
ELEMENTWISE = frozenset((
    "Abs", "Add", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuickGelu", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class HiddenSite:
    """``consumer`` takes the hidden channels, ``producers`` make them, ``vectors`` are (node, operand) of constants.

    ``values`` are all that have a hidden channel as their last axis, the consumer's input first; ``bias`` is the node
    and operand of what is added to the consumer's output, if anything is.
    """

    consumer: Weight
    producers: tuple[Weight, ...]
    vectors: tuple[tuple[ir.Node, int], ...]
    values: tuple[ir.Value, ...]
    bias: tuple[ir.Node, int] | None

    @property
    def name(self) -> str:
        """The name of the consumer's weight."""
        return self.consumer.name

    @property
    def channels(self) -> int:
        """How many hidden channels there are."""
        return int(self.consumer.matrix().shape[0])


def find_sites(
    model: ir.Model, skipped: dict[str, str], *, min_elements: int = 1024, keep: Sequence[str] = ()
) -> list[HiddenSite]:
    """The sites of ``model``, in its order; for each other matrix the reason goes into ``skipped``."""
    reasons: dict[str, str] = {}
    weights = find_weights(model, reasons, kinds=("MatMul", "Gemm"), min_elements=min_elements, keep=keep)
    for name, reason in reasons.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or len(value.const_value.shape.numpy()) > 1:
            skipped[name] = reason
    usable = []
    for weight in weights:
        reason = weight.obstacle_to_matrix() or ("several nodes use it" if len(weight.uses) > 1 else "")
        if reason:
            skipped[weight.name] = reason
        else:
            usable.append(weight)
    makers = {weight.uses[0].node: weight for weight in usable}
    sites, used = [], set[str]()
    for weight in usable:
        found = _trace(model.graph, weight, makers)
        if isinstance(found, str):
            skipped[weight.name] = found
        else:
            sites.append(found)
            used |= {one.name for one in (weight, *found.producers)}
    for name in used:
        skipped.pop(name, None)
    return sites


def cut_site(
    graph: ir.Graph,
    site: HiddenSite,
    kept: npt.NDArray[np.int64],
    weight: npt.NDArray[Any],
    shift: npt.NDArray[Any] | None,
) -> None:
    """Leaves the channels ``kept`` alone; ``weight`` [kept, out] is the consumer's new matrix, ``shift`` its bias's."""
    for producer in site.producers:
        _replace(graph, producer, producer.matrix()[:, kept])
    _replace(graph, site.consumer, np.asarray(weight, np.float32))
    for node, operand in site.vectors:
        array, value = _operand(node, operand)
        node.replace_input_with(operand, add_constant(graph, f"{value.name}.kept", array[..., kept]))
    if site.bias is not None and shift is not None:
        node, operand = site.bias
        array, value = _operand(node, operand)
        moved = (array + shift.astype(np.float32)).astype(np.float32)
        node.replace_input_with(operand, add_constant(graph, f"{value.name}.moved", moved))
    for value in site.values:
        value.shape = None


def _replace(graph: ir.Graph, weight: Weight, matrix: npt.NDArray[np.float32]) -> None:
    node = weight.uses[0].node
    stored = matrix.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else matrix
    node.replace_input_with(1, add_constant(graph, f"{weight.name}.kept", np.ascontiguousarray(stored, np.float32)))


def _operand(node: ir.Node, operand: int) -> tuple[npt.NDArray[Any], ir.Value]:
    value = node.inputs[operand]
    assert value is not None
    array = constant_array(value)
    assert array is not None
    return array, value


def _trace(graph: ir.Graph, weight: Weight, makers: Mapping[ir.Node, Weight]) -> HiddenSite | str:
    """The site whose consumer is ``weight``, or why there is none."""
    consumer, channels = weight.uses[0].node, weight.matrix().shape[0]
    producers: dict[str, Weight] = {}
    vectors: list[tuple[ir.Node, int]] = []
    values: dict[ir.Value, None] = {}
    inside: set[ir.Node] = {consumer}
    waiting = [consumer.inputs[0]]
    while waiting:
        value = waiting.pop()
        if value is None or value in values:
            continue
        node = value.producer()
        if node is None:
            return "its input is the graph's own"
        values[value] = None
        inside.add(node)
        if node in makers:
            producers[makers[node].name] = makers[node]
            operands = range(2, len(node.inputs))
            if makers[node].matrix().shape[1] != channels:
                return f"{node_name(node)} makes other channels than it takes"
        elif node.op_type in ELEMENTWISE and len(node.outputs) == 1:
            operands = range(len(node.inputs))
        else:
            return f"its input comes from {node_name(node)}, a {node.op_type}, which mixes or moves channels"
        for operand in operands:
            item = node.inputs[operand]
            if item is None:
                continue
            array = constant_array(item)
            if array is None:
                if node in makers:
                    return f"{node_name(node)} adds something that isn't constant"
                waiting.append(item)
            elif array.size > 1:
                if array.shape[-1] != channels or array.size != channels:
                    return f"{node_name(node)} takes a constant of shape {list(array.shape)}"
                vectors.append((node, operand))
    if not producers or (len(producers) == 1 and next(iter(producers)) == weight.name):
        return "nothing makes its input"
    for value in values:
        if value in graph.outputs:
            return f"{value.name} is an output of the graph"
        outside = [node for node, _ in value.uses() if node not in inside]
        if outside:
            return f"{node_name(outside[0])} takes its input, too"
    return HiddenSite(
        consumer=weight,
        producers=tuple(producers.values()),
        vectors=tuple(vectors),
        values=tuple(values),
        bias=_find_bias(consumer, weight.matrix().shape[1], graph),
    )


def _find_bias(consumer: ir.Node, outputs: int, graph: ir.Graph) -> tuple[ir.Node, int] | None:
    """Where a constant for each of the consumer's outputs is added."""
    if consumer.op_type == "Gemm":
        fits = len(consumer.inputs) > 2 and consumer.inputs[2] is not None
        array = constant_array(consumer.inputs[2]) if fits and consumer.inputs[2] is not None else None
        return (consumer, 2) if array is not None and array.size == outputs else None
    result = consumer.outputs[0]
    uses = list(result.uses())
    if len(uses) != 1 or result in graph.outputs or uses[0][0].op_type != "Add":
        return None
    node, position = uses[0]
    other = node.inputs[1 - position]
    array = None if other is None else constant_array(other)
    return (node, 1 - position) if array is not None and array.size == outputs == array.shape[-1] else None
