"""What of a float graph goes onto int8 kernels, and why the rest doesn't."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.graphs.graph import constant_array
from edgeslim.graphs.int8_convs import Conv, conv_obstacle, find_conv
from edgeslim.graphs.int8_forms import Linear, Table, attribute, find_linear

__all__ = ["SiteFinder"]

STANDARD = ("", "ai.onnx")
KEPT = "kept float by the recipe"


@dataclass(frozen=True, kw_only=True)
class SiteFinder:
    """Walks a graph; nodes whose names match ``keep_float``, and weights below ``min_elements``, are left alone.

    Whatever could have been taken and isn't goes into ``skipped``, with the reason.
    """

    keep_float: Sequence[str]
    min_elements: int

    def linears(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Linear]:
        """Each MatMul and Gemm with a constant weight."""
        for node in graph:
            if node.domain not in STANDARD or node.op_type not in ("MatMul", "Gemm"):
                continue
            name = _name(node)
            reason = self._obstacle(node, name)
            if reason:
                skipped[name] = reason
            else:
                yield find_linear(node, name)

    def convs(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Conv]:
        """Each Conv with a constant weight."""
        for node in graph:
            if node.domain not in STANDARD or node.op_type != "Conv":
                continue
            name = _name(node)
            if self._kept(name):
                skipped[name] = KEPT
            elif reason := conv_obstacle(node):
                skipped[name] = reason
            else:
                yield find_conv(node, name)

    def tables(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Table]:
        """Each embedding table."""
        for node in graph:
            if node.op_type != "Gather" or node.domain not in STANDARD:
                continue
            weight = constant_array(node.inputs[0])
            if weight is None or weight.dtype != np.float32 or weight.ndim != 2 or attribute(node, "axis", 0) != 0:
                continue  # shape arithmetic, not an embedding
            name = _name(node)
            if self._kept(name):
                skipped[name] = KEPT
            elif weight.size < self.min_elements:
                skipped[name] = f"its table has {weight.size} elements, fewer than min_elements = {self.min_elements}"
            else:
                yield Table(node=node, name=name, weight=weight)

    def _kept(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float)

    def _obstacle(self, node: ir.Node, name: str) -> str:
        """Why a MatMul or Gemm is left in float, or an empty string."""
        if self._kept(name):
            return KEPT
        weight = constant_array(node.inputs[1])
        if weight is None:
            return "both operands are computed: there is no weight"
        if weight.dtype != np.float32:
            return f"its weight is {weight.dtype}, not float32"
        if weight.ndim != 2:
            return f"its weight has {weight.ndim} dimensions, not 2"
        if weight.size < self.min_elements:
            return f"its weight has {weight.size} elements, fewer than min_elements = {self.min_elements}"
        if node.op_type == "Gemm":
            plain = all(attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            fitting = bias is None or getattr(constant_array(bias), "ndim", 0) == 1
            if not plain or attribute(node, "transA", 0) or not fitting:
                return "a Gemm with alpha, beta, transA or a bias that isn't constant"
        return ""


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type
