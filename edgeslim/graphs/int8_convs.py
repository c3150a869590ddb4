"""Convolutions on int8 kernels: quantized input, weights *and output*, for ONNX Runtime's QLinearConv takes no less.

A ReLU (or a Clip that starts at 0) behind a convolution costs nothing: the scale of its output begins at 0 and ends
inside the clip, and rounding to that cuts off the same. A MaxPool between two of them runs on the bytes. So a chain of
convolutions is quantized once where it begins and dequantized once where it ends::

    integer:  uint8 -> QLinearConv(int8 weight, int32 bias) -> uint8
    qdq:      uint8 -> DequantizeLinear -> Conv(DequantizeLinear(...)) -> QuantizeLinear -> uint8

An Add of two branches stays float in the file and is fused by ONNX Runtime (QLinearAdd), if both its inputs come from
uint8; so they do.

Layouts: weights ``[out, in / group, *kernel]``, a scale for each ``out``; the bias is int32 of scale input x weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array
from edgeslim.graphs.int8_forms import Int8Writer, Quantized
from edgeslim.numerics import Affine, quantize_weight

__all__ = ["Conv", "conv_obstacle", "find_conv", "guard_float", "quantize_bias", "write_conv"]

BIAS_LIMIT = 2**30
PASSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")
"""Operators past which ONNX Runtime moves conversions."""


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution; ``activation`` is the ReLU, or Clip from 0, that alone takes its output."""

    name: str
    node: ir.Node
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    source_name: str
    activation: ir.Node | None = None

    @property
    def source(self) -> ir.Value:
        """What feeds it now."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """The value to be kept in uint8."""
        return (self.activation or self.node).outputs[0]


def conv_obstacle(node: ir.Node) -> str:
    """Why a Conv can't be quantized, or an empty string."""
    weight = constant_array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias is not None and constant_array(bias) is None):
        return "its weight or bias is computed"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, not float32"
    return ""


def find_conv(node: ir.Node, name: str) -> Conv:
    """A Conv that has no obstacle, with the activation that may be folded into it."""
    weight = constant_array(node.inputs[1])
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    source_name = getattr(node.inputs[0], "name", None) or ""
    plain = Conv(name=name, node=node, weight=weight, bias=bias, source_name=source_name)
    uses = list(node.outputs[0].uses())
    alone = len(uses) == 1 and not node.outputs[0].is_graph_output()
    return replace(plain, activation=uses[0].node) if alone and _starts_at_zero(uses[0].node) else plain


def quantize_bias(
    bias: npt.NDArray[np.float32], source_scale: float, weight_scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """A bias [out] in the accumulator's scale, which is that of the input times that of the weight."""
    steps = np.rint(bias.astype(np.float64) / (np.float64(source_scale) * weight_scale.astype(np.float64)))
    return np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)


def write_conv(writer: Int8Writer, conv: Conv, source: Affine, output: Affine, *, per_channel: bool) -> None:
    """Puts ``conv`` into int8, with its input and output quantized as given."""
    nodes: list[ir.Node] = []
    name = conv.name
    taken = writer.quantize_source(conv.source, conv.source_name, source, nodes)
    if nodes and nodes[-1].op_type == "QuantizeLinear":
        _share(writer, conv, taken, nodes)
    weight = quantize_weight(conv.weight, axis=0 if per_channel else None)
    values, scale = weight.values, weight.scale
    if conv.bias is not None:
        # A channel of next to no weight would need a bias past int32: a coarser scale costs it nothing.
        least = (np.abs(conv.bias) if per_channel else np.abs(conv.bias).max()) / (taken.affine.scale * BIAS_LIMIT)
        if np.any(scale < least):
            scale = np.maximum(scale, least).astype(np.float32)
            shape = [-1 if per_channel and dim == 0 else 1 for dim in range(values.ndim)]
            values = np.clip(np.rint(conv.weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    weights = writer.constant(f"{name}.weight_int8", values)
    scales = writer.constant(f"{name}.weight_scale", scale)
    zeros = writer.constant(f"{name}.weight_zero_point", np.zeros(scale.shape, np.int8))
    bias = None
    if conv.bias is not None:
        bias = writer.constant(f"{name}.bias_int32", quantize_bias(conv.bias, taken.affine.scale, scale))
    result = conv.output.name or name
    out_scale = writer.constant(f"{result}.scale", np.float32(output.scale))
    out_zero = writer.constant(f"{result}.zero_point", np.uint8(output.zero_point))
    attributes = conv.node.attributes
    if writer.integer:
        inputs = [taken.value, taken.scale, taken.zero, weights, scales, zeros, out_scale, out_zero]
        last = ir.node("QLinearConv", inputs if bias is None else [*inputs, bias], attributes, name=f"{name}.int8")
        nodes.append(last)
    else:
        source_floats = writer.dequantize(taken, f"{name}.input_dequantized")
        axis = {"axis": 0} if scale.ndim else None
        weight_floats = ir.node("DequantizeLinear", [weights, scales], axis, name=f"{name}.weight_dequantized")
        operands = [source_floats.outputs[0], weight_floats.outputs[0]]
        nodes += [source_floats, weight_floats]
        if bias is not None:
            step = (np.float64(taken.affine.scale) * scale.astype(np.float64)).astype(np.float32)
            bias_scale = writer.constant(f"{name}.bias_scale", step)
            bias_floats = ir.node("DequantizeLinear", [bias, bias_scale], axis, name=f"{name}.bias_dequantized")
            nodes.append(bias_floats)
            operands.append(bias_floats.outputs[0])
        product = ir.node("Conv", operands, attributes, name=f"{name}.int8")
        last = ir.node("QuantizeLinear", [product.outputs[0], out_scale, out_zero], name=f"{name}.quantized")
        nodes += [product, last]
    made = Quantized(value=last.outputs[0], scale=out_scale, zero=out_zero, affine=output)
    nodes.append(writer.dequantize(made, f"{name}.dequantized"))
    old = (conv.node,) if conv.activation is None else (conv.node, conv.activation)
    writer.replace(old, nodes, conv.output)
    writer.quantized[result] = made


def guard_float(graph: ir.Graph) -> int:
    """Keeps convolutions that stay float so at run time, and says how many had to be told.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime quantizes a Conv by itself, with one scale for all
    channels. A Clip that cuts nothing off stands between them where that would happen.
    """
    guarded = 0
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Conv" else None
        if source is None or constant_array(node.inputs[1]) is None:
            continue
        if _comes_from_int8(source) and _goes_to_int8(node.outputs[0]):
            lowest = ir.val(f"{node.name}.lowest", const_value=ir.tensor(np.finfo(np.float32).min))
            graph.register_initializer(lowest)
            clip = ir.node("Clip", [source, lowest], name=f"{node.name}.stays_float")
            graph.insert_before(node, clip)
            node.replace_input_with(0, clip.outputs[0])
            guarded += 1
    return guarded


def _comes_from_int8(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type == "DequantizeLinear":
        return node is not None
    inner = node.inputs[0] if node.op_type in PASSED else None
    return inner is not None and _comes_from_int8(inner)


def _goes_to_int8(value: ir.Value) -> bool:
    users = [use.node for use in value.uses()]
    passing = [user for user in users if user.op_type in ("Relu", "Clip", *PASSED)]
    return any(user.op_type == "QuantizeLinear" for user in users) or any(
        _goes_to_int8(user.outputs[0]) for user in passing
    )


def _share(writer: Int8Writer, conv: Conv, taken: Quantized, nodes: list[ir.Node]) -> None:
    """Lets an Add that takes the same value as ``conv`` take its uint8 form too."""
    source = conv.source
    adds = [use for use in source.uses() if use.node.op_type == "Add"]
    if adds:
        floats = writer.dequantize(taken, f"{conv.source_name}.dequantized")
        nodes.append(floats)
        for use in adds:
            use.node.replace_input_with(use.idx, floats.outputs[0])


def _starts_at_zero(node: ir.Node) -> bool:
    """Whether a node is a ReLU, or a Clip from 0: what it cuts off, a scale for its output can't say anyway."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Relu", "Clip"):
        return False
    if node.op_type == "Relu":
        return True
    known = node.attributes.get("min")
    low = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return float(low.reshape(())) == 0.0 if low is not None else known is not None and known.as_float() == 0.0
