"""Small ONNX models and targets, made without shapes and without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgeslim.core import Finding
from edgeslim.target import MachineProfile, RuntimeProfile, TargetProfile

FLOAT, FLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
INT8, UINT8, INT32, INT64, BOOL = (
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **more: Any) -> onnx.NodeProto:
    made: onnx.NodeProto = helper.make_node(operator, list(inputs), list(outputs), domain=domain, **more)
    return made


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, int | onnx.TypeProto],
    outputs: Sequence[str],
    *,
    opset: int = 21,
    ir_version: int = 10,
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model whose inputs have a type and no shape, and whose outputs have neither."""
    values = [
        helper.make_value_info(name, kind)
        if isinstance(kind, onnx.TypeProto)
        else helper.make_tensor_value_info(name, kind, None)
        for name, kind in inputs.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "graph", values, results, list(initializers))
    imports = {"": opset, "com.microsoft": 1, **(domains or {})}
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=opsets, functions=list(functions))


def make_target(version: str, *, isa: str = "x86_64", opset_max: int = 21) -> TargetProfile:
    return TargetProfile(
        name="board",
        summary="a board",
        machine=MachineProfile(isa=isa),
        runtime=RuntimeProfile(version=version, opset_max=opset_max),
    )


def by_metric(findings: Sequence[Finding]) -> dict[str, Finding]:
    found = {finding.metric: finding for finding in findings}
    assert len(found) == len(findings), "a metric twice"
    return found
