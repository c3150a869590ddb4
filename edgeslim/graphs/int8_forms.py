"""Nodes that ONNX Runtime runs on its int8 kernels, written into a graph in the place of float ones.

Layouts: weights of MatMul and Gemm ``[in, out]``, tables ``[rows, width]``, activations as they are in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.smoothing import MIDDLE, Smoothing
from edgeslim.graphs.graph import constant_array
from edgeslim.numerics import Affine, QuantizedWeight

__all__ = ["MICROSOFT", "Int8Writer", "Linear", "Quantized", "Table", "attribute", "find_linear"]

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A MatMul or Gemm: ``weight`` float32 [in, out]; ``nodes`` are replaced, ``output`` is what they make.

    ``source_name`` names the input as it was in the float graph, and so its range; ``source`` is what feeds it now.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    source_name: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    output: ir.Value

    @property
    def source(self) -> ir.Value:
        """What feeds it now."""
        value = self.nodes[0].inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True, kw_only=True)
class Table:
    """An embedding: Gather along axis 0 of ``weight`` float32 [rows, width]."""

    node: ir.Node
    name: str
    weight: npt.NDArray[np.float32]


def find_linear(node: ir.Node, name: str) -> Linear:
    """A MatMul with a constant weight and the Add of its bias, or a Gemm."""
    weight = constant_array(node.inputs[1])
    assert weight is not None
    source_name = getattr(node.inputs[0], "name", None) or ""
    if node.op_type == "Gemm":
        bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        oriented = weight.T if attribute(node, "transB", 0) else weight
        return Linear(
            name=name, nodes=(node,), source_name=source_name, weight=oriented, bias=bias, output=node.outputs[0]
        )
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type == "Add":
        addition = uses[0].node
        bias = constant_array(addition.inputs[1 - uses[0].idx])
        if bias is not None and bias.shape == (weight.shape[1],):
            nodes = (node, addition)
            return Linear(
                name=name, nodes=nodes, source_name=source_name, weight=weight, bias=bias, output=addition.outputs[0]
            )
    return Linear(name=name, nodes=(node,), source_name=source_name, weight=weight, bias=None, output=output)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A float value's uint8 form, and how to read it."""

    value: ir.Value
    scale: ir.Value
    zero: ir.Value
    affine: Affine


class Int8Writer:
    """Replaces float nodes by int8 ones; weights and quantized inputs that several nodes share are written once."""

    def __init__(self, graph: ir.Graph, *, integer: bool) -> None:
        self.graph = graph
        self.integer = integer
        self.quantized: dict[str, Quantized] = {}
        self.peaks: dict[str, ir.Value] = {}
        self._opset = graph.opset_imports.get("", 0)

    def write_linear(self, linear: Linear, weight: QuantizedWeight, site: Smoothing) -> None:
        """Puts ``linear`` onto int8 weights [in, out] and an input smoothed and quantized as ``site`` says."""
        name = linear.name
        nodes: list[ir.Node] = []
        source, peak = self._quantize_input(linear, site, nodes)
        values = self.constant(f"{name}.weight_int8", weight.values)
        scales = self.constant(f"{name}.weight_scale", weight.scale)
        zeros = None if weight.zero_point is None else self.constant(f"{name}.weight_zero_point", weight.zero_point)
        bias = None if linear.bias is None else self.constant(f"{name}.bias", linear.bias)
        if self.integer:
            inputs = [source.value, values, source.scale, scales, source.zero, zeros, bias if peak is None else None]
            while inputs[-1] is None:
                inputs.pop()
            nodes.append(ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=f"{name}.int8"))
        else:
            taken = self.dequantize(source, f"{name}.input_dequantized")
            operands = [values, scales] if zeros is None else [values, scales, zeros]
            axis = {"axis": 1} if weight.scale.ndim else None
            dequantized = ir.node("DequantizeLinear", operands, axis, name=f"{name}.weight_dequantized")
            product = ir.node("MatMul", [taken.outputs[0], dequantized.outputs[0]], name=f"{name}.int8")
            nodes += [taken, dequantized, product]
        if peak is not None:
            nodes.append(ir.node("Mul", [nodes[-1].outputs[0], peak], name=f"{name}.rescaled"))
        if bias is not None and (peak is not None or not self.integer):
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{name}.biased"))
        self.replace(linear.nodes, nodes, linear.output)

    def _quantize_input(
        self, linear: Linear, site: Smoothing, nodes: list[ir.Node]
    ) -> tuple[Quantized, ir.Value | None]:
        """The input of ``linear`` in uint8, and the peak of each of its rows where they have a scale of their own."""
        taken_from, key = linear.source, linear.source_name
        if site.scale is not None:
            key = f"{key}.smoothed"
            if key not in self.quantized:
                factor = self.constant(f"{key}.factor", np.float32(1) / site.scale)
                nodes.append(ir.node("Mul", [taken_from, factor], name=key))
                taken_from = nodes[-1].outputs[0]
        if not site.per_token:
            return self.quantize_source(taken_from, key, site.affine, nodes), None
        if key not in self.peaks:
            self.peaks[key] = self._find_peaks(taken_from, key, site, nodes)
            self.quantized[key] = self._quantize_rows(taken_from, key, site, len(linear.weight), nodes)
        return self.quantized[key], self.peaks[key]

    def _find_peaks(self, source: ir.Value, name: str, site: Smoothing, nodes: list[ir.Node]) -> ir.Value:
        """The peak of each row of ``source``, as ``smoothing.round_input`` has it."""
        measured = source
        if site.affine.zero_point == MIDDLE:
            nodes.append(ir.node("Abs", [source], name=f"{name}.magnitudes"))
            measured = nodes[-1].outputs[0]
        if self._opset < 18:
            largest = ir.node("ReduceMax", [measured], {"axes": [-1], "keepdims": 1}, name=f"{name}.largest")
        else:
            axes = self.constant(f"{name}.last_axis", np.array([-1], np.int64))
            largest = ir.node("ReduceMax", [measured, axes], {"keepdims": 1}, name=f"{name}.largest")
        least = self.constant(f"{name}.least_peak", np.float32(site.least_peak))
        peak = ir.node("Max", [largest.outputs[0], least], name=f"{name}.peak")
        nodes += [largest, peak]
        return peak.outputs[0]

    def _quantize_rows(
        self, source: ir.Value, name: str, site: Smoothing, width: int, nodes: list[ir.Node]
    ) -> Quantized:
        """``source`` in uint8, each row by its peak; ``scale`` is what the peak has to be multiplied with.

        One node quantizes all rows, which are a scale's channels to it: multiplying them first would write the whole
        input once more. Before opset 13 channels can't have scales.
        """
        scale = self.constant(f"{name}.scale", np.float32(site.affine.scale))
        zero = self.constant(f"{name}.zero_point", np.uint8(site.affine.zero_point))
        if self._opset < 13:
            inverse = ir.node("Reciprocal", [self.peaks[name]], name=f"{name}.inverse_peak")
            rows = ir.node("Mul", [source, inverse.outputs[0]], name=f"{name}.by_peak")
            last = ir.node("QuantizeLinear", [rows.outputs[0], scale, zero], name=f"{name}.quantized")
            nodes += [inverse, rows, last]
        else:
            all_rows = self.constant("every_row", np.array([-1], np.int64))
            flat = self.constant(f"every_row_of_{width}", np.array([-1, width], np.int64))
            steps = ir.node("Mul", [self.peaks[name], scale], name=f"{name}.steps")
            vector = ir.node("Reshape", [steps.outputs[0], all_rows], name=f"{name}.steps_in_a_row")
            count = ir.node("Shape", [vector.outputs[0]], name=f"{name}.count")
            zeros = ir.node("Expand", [zero, count.outputs[0]], name=f"{name}.zero_points")
            matrix = ir.node("Reshape", [source, flat], name=f"{name}.rows")
            quantized = ir.node(
                "QuantizeLinear",
                [matrix.outputs[0], vector.outputs[0], zeros.outputs[0]],
                {"axis": 0},
                name=f"{name}.quantized",
            )
            shape = ir.node("Shape", [source], name=f"{name}.shape")
            last = ir.node("Reshape", [quantized.outputs[0], shape.outputs[0]], name=f"{name}.rows_in_place")
            nodes += [steps, vector, count, zeros, matrix, quantized, shape, last]
        return Quantized(value=last.outputs[0], scale=scale, zero=zero, affine=site.affine)

    def write_table(self, table: Table, weight: QuantizedWeight) -> None:
        """Puts ``table`` onto int8 rows, a scale a row."""
        name, index = table.name, table.node.inputs[1]
        values = self.constant(f"{name}.table_int8", weight.values)
        scales = self.constant(f"{name}.table_scale", weight.scale.reshape(-1, 1))
        rows = ir.node("Gather", [values, index], name=f"{name}.rows")
        row_scales = ir.node("Gather", [scales, index], name=f"{name}.row_scales")
        floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.float")
        scaled = ir.node("Mul", [floats.outputs[0], row_scales.outputs[0]], name=f"{name}.scaled")
        self.replace((table.node,), [rows, row_scales, floats, scaled], table.node.outputs[0])

    def quantize_source(self, source: ir.Value, name: str, affine: Affine, nodes: list[ir.Node]) -> Quantized:
        """``source`` in uint8, quantized once however many nodes take it; a new node is added to ``nodes``."""
        if name not in self.quantized:
            made = self.pool(source, nodes)
            if made is None:
                scale = self.constant(f"{name}.scale", np.float32(affine.scale))
                zero = self.constant(f"{name}.zero_point", np.uint8(affine.zero_point))
                node = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}.quantized")
                nodes.append(node)
                made = Quantized(value=node.outputs[0], scale=scale, zero=zero, affine=affine)
            self.quantized[name] = made
        return self.quantized[name]

    def pool(self, source: ir.Value, nodes: list[ir.Node]) -> Quantized | None:
        """Where ``source`` is a MaxPool of what is quantized already: the same in uint8, for order is kept."""
        node = source.producer()
        if node is None or node.op_type != "MaxPool" or self._opset < 12 or len(node.outputs) > 1:
            return None
        inner = node.inputs[0]
        assert inner is not None
        found = self.quantized.get(inner.name or "") or self.pool(inner, nodes)
        if found is None:
            return None
        name = f"{source.name}.int8"
        if self.integer:
            pooled = ir.node("MaxPool", [found.value], node.attributes, name=name)
            nodes.append(pooled)
        else:
            floats = ir.node("DequantizeLinear", [found.value, found.scale, found.zero], name=f"{name}_dequantized")
            between = ir.node("MaxPool", [floats.outputs[0]], node.attributes, name=name)
            pooled = ir.node("QuantizeLinear", [between.outputs[0], found.scale, found.zero], name=f"{name}_quantized")
            nodes += [floats, between, pooled]
        return replace(found, value=pooled.outputs[0])

    def dequantize(self, source: Quantized, name: str) -> ir.Node:
        """A new node that turns ``source`` back into float."""
        return ir.node("DequantizeLinear", [source.value, source.scale, source.zero], name=name)

    def constant(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        """The initializer ``name``, made of ``array`` unless it is there."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name))
        self.graph.register_initializer(value)
        return value

    def replace(self, old: tuple[ir.Node, ...], new: list[ir.Node], output: ir.Value) -> None:
        """Puts ``new`` in the place of ``old``; the last one's output takes over ``output``, its name included."""
        result = new[-1].outputs[0]
        result.type, result.shape, name = output.type, output.shape, output.name
        ir.convenience.replace_nodes_and_values(self.graph, old[-1], old, new, [output], [result])
        result.name = name


def attribute(node: ir.Node, key: str, default: float) -> float:
    """A number among a node's attributes."""
    attribute = node.attributes.get(key)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT else attribute.as_int()
