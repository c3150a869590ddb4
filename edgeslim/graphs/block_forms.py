"""Nodes that read weights in blocks of few bits, written into a graph in the place of float ones.

Two forms of a linear layer::

    packed:  x -> MatMulNBits(levels, scales, zero points, bias) -> float
    qdq:     x -> MatMul(DequantizeLinear(levels, scales, zero points)) -> Add(bias) -> float

The second is plain ONNX of opset 21; ONNX Runtime turns it into the first when it loads the model. An embedding is
``GatherBlockQuantized`` in both, since plain ONNX has no form that wouldn't dequantize the whole table at every run. A
table's scales are float16, with a Cast behind it, unless a linear layer shares them or they leave float16's range.

A matrix that several nodes read is stored once: the table takes the linear layers' levels through a Reshape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.blockwise import BlockWeight
from edgeslim.graphs.int8_forms import MICROSOFT, Int8Writer, Linear, Table
from edgeslim.quantizing.block_sites import Matrix
from edgeslim.target import MachineProfile

__all__ = ["QDQ_OPSET", "Arithmetic", "BlockWriter", "accuracy_level", "arithmetic_levels"]

Arithmetic = Literal["target", "int8", "mixed", "float"]
"""``mixed``: float for blocks of 4 bits, int8 inputs for those of 8 bits, which have no fast float form."""

QDQ_OPSET = 21
INT8_ARITHMETIC = 4
"""MatMulNBits' ``accuracy_level`` at which inputs are rounded to int8, a scale a block."""
FLOAT16_MIN, FLOAT16_MAX = 6.2e-5, 6e4


def accuracy_level(isa: str, features: tuple[str, ...], bits: int) -> int:
    """The level at which MatMulNBits is fastest: int8 arithmetic where the machine has dot products of bytes.

    Without them the kernels of 4 bits compute in float anyway; those of 8 bits have no fast float form.
    """
    has_dot_products = isa.startswith(("x86", "amd64")) or bool({"dotprod", "i8mm", "sve", "sme"} & set(features))
    return INT8_ARITHMETIC if has_dot_products or bits == 8 else 0


def arithmetic_levels(arithmetic: Arithmetic, machine: MachineProfile) -> dict[int, int]:
    """``accuracy_level`` by bits; ``target`` is what ``machine`` is fastest at."""
    fixed = {
        "int8": {4: INT8_ARITHMETIC, 8: INT8_ARITHMETIC},
        "mixed": {4: 0, 8: INT8_ARITHMETIC},
        "float": {4: 0, 8: 0},
    }
    fastest = {bits: accuracy_level(machine.isa, machine.features, bits) for bits in (4, 8)}
    return fixed.get(arithmetic, fastest)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The initializers of one matrix."""

    levels: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    width: int
    made: BlockWeight


class BlockWriter:
    """Replaces float nodes by ones that read packed levels. ``level`` gives ``accuracy_level`` by bits."""

    def __init__(self, graph: ir.Graph, *, qdq: bool, level: dict[int, int]) -> None:
        self.graph = graph
        self.qdq = qdq
        self.level = level
        self._writer = Int8Writer(graph, integer=False)

    def write(self, matrix: Matrix, made: BlockWeight) -> None:
        """Puts all readers of ``matrix`` onto ``made``."""
        if self.qdq and not matrix.tables:
            for linear in matrix.linears:
                self._write_qdq(linear, matrix.name, made)
            return
        stored = self._store(matrix.name, made, for_tables=not matrix.linears)
        for linear in matrix.linears:
            self._write_linear(linear, stored)
        for table in matrix.tables:
            self._write_table(table, stored, shared=matrix.tied)

    def _store(self, name: str, made: BlockWeight, *, for_tables: bool) -> Stored:
        bits = made.grid.bits
        scale = made.grid.scale
        magnitude = np.abs(scale)
        if for_tables and magnitude.max() < FLOAT16_MAX and magnitude.min() > FLOAT16_MIN:
            scale = scale.astype(np.float16)
        packed, zeros = made.packed(), made.packed_zero_points()
        if for_tables:  # no linear layer reads it: it is stored as its tables want it
            packed = packed.reshape(len(packed), -1)[:, : made.levels.shape[1] * bits // 8]
        return Stored(
            levels=self._writer.constant(f"{name}.weight_q{bits}", packed),
            scale=self._writer.constant(f"{name}.weight_scale", scale),
            zero_point=None if zeros is None else self._writer.constant(f"{name}.weight_zero_point", zeros),
            width=made.levels.shape[1],
            made=made,
        )

    def _write_linear(self, linear: Linear, stored: Stored) -> None:
        grid, name = stored.made.grid, linear.name
        bias = None if linear.bias is None else self._writer.constant(f"{name}.bias", linear.bias)
        inputs = [linear.source, stored.levels, stored.scale, stored.zero_point, None, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "K": stored.width,
            "N": len(grid.scale),
            "bits": grid.bits,
            "block_size": grid.block_size,
            "accuracy_level": self.level[grid.bits],
        }
        node = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=f"{name}.q{grid.bits}")
        self._writer.replace(linear.nodes, [node], linear.output)

    def _write_qdq(self, linear: Linear, stored_name: str, made: BlockWeight) -> None:
        grid, name = made.grid, linear.name
        symmetric = grid.zero_point is None
        kind = {
            (4, True): ir.DataType.INT4, (4, False): ir.DataType.UINT4, (8, True): ir.DataType.INT8
        }.get((grid.bits, symmetric), ir.DataType.UINT8)  # fmt: skip
        shift = grid.middle if symmetric else 0
        levels = self._typed(f"{stored_name}.weight_q{grid.bits}", made.levels.T.astype(np.int16) - shift, kind)
        operands = [levels, self._writer.constant(f"{stored_name}.weight_scale", np.ascontiguousarray(grid.scale.T))]
        if grid.zero_point is not None:
            zero_points = grid.zero_point.T.astype(np.int16)
            operands.append(self._typed(f"{stored_name}.weight_zero_point", zero_points, kind))
        blocks = {"axis": 0, "block_size": grid.block_size}
        weight = ir.node("DequantizeLinear", operands, blocks, name=f"{name}.weight_dequantized")
        nodes = [weight, ir.node("MatMul", [linear.source, weight.outputs[0]], name=f"{name}.q{grid.bits}")]
        if linear.bias is not None:
            bias = self._writer.constant(f"{name}.bias", linear.bias)
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{name}.biased"))
        self._writer.replace(linear.nodes, nodes, linear.output)

    def _typed(self, name: str, values: npt.NDArray[np.int16], kind: ir.DataType) -> ir.Value:
        """An initializer of 4- or 8-bit integers."""
        if name not in self.graph.initializers:
            array = np.ascontiguousarray(values).astype(kind.numpy())
            self.graph.register_initializer(ir.val(name, const_value=ir.Tensor(array, dtype=kind, name=name)))
        return self.graph.initializers[name]

    def _write_table(self, table: Table, stored: Stored, *, shared: bool) -> None:
        grid, name = stored.made.grid, table.name
        nodes: list[ir.Node] = []
        levels = stored.levels
        if shared:
            whole = np.array([len(grid.scale), -1], np.int64)
            nodes.append(ir.node("Reshape", [levels, self._writer.constant(f"{name}.table_shape", whole)]))
            levels = nodes[-1].outputs[0]
            if stored.width % grid.block_size:  # the filling of each row's last block isn't the table's
                names = ("start", "end", "axis")
                bounds = (0, stored.width * grid.bits // 8, 1)
                cut = [
                    self._writer.constant(f"{name}.table_{key}", np.array([bound], np.int64))
                    for key, bound in zip(names, bounds, strict=True)
                ]
                nodes.append(ir.node("Slice", [levels, *cut]))
                levels = nodes[-1].outputs[0]
        operands = [levels, table.node.inputs[1], stored.scale]
        if stored.zero_point is not None:
            operands.append(stored.zero_point)
        attributes = {"bits": grid.bits, "block_size": grid.block_size, "gather_axis": 0, "quantize_axis": 1}
        nodes.append(ir.node("GatherBlockQuantized", operands, attributes, domain=MICROSOFT, name=f"{name}.rows"))
        if stored.scale.dtype == ir.DataType.FLOAT16:
            nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.float"))
        self._writer.replace((table.node,), nodes, table.node.outputs[0])
