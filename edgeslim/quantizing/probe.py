"""A graph that also gives what lies inside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from edgeslim.graphs.graph import save_graph
from edgeslim.session import OrtRunner, open_runner

__all__ = ["open_probe"]


def open_probe(model: ir.Model, values: Sequence[ir.Value], folder: Path) -> OrtRunner:
    """A session that gives ``values`` (those that aren't inputs already) beside the model's outputs."""
    kept = list(model.graph.outputs)
    present = {value.name for value in (*kept, *model.graph.inputs)}
    try:
        for value in values:
            if value.name not in present:
                present.add(value.name)
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
        path, _ = save_graph(model, folder)
    finally:
        while len(model.graph.outputs) > len(kept):
            model.graph.outputs.pop()  # deleting a slice would leave its values marked as outputs
    return open_runner(path)
