"""A float graph whose weights can be exchanged between runs, without opening it anew.

The chosen matrices become inputs of the graph, and inputs of layers become outputs. That tells what quantizing one
matrix does to the model's output, and what inputs a layer gets once the layers before it are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Runner
from edgeslim.graphs.graph import save_graph
from edgeslim.graphs.int8_forms import attribute
from edgeslim.quantizing.block_sites import Matrix
from edgeslim.session import OrtRunner, open_runner

__all__ = ["WeightProbe"]

Weights = Mapping[str, npt.NDArray[np.float32]]


class WeightProbe:
    """``model`` with the weights of ``matrices`` taken from outside; ``folder`` is made for its file."""

    def __init__(self, model: ir.Model, matrices: Sequence[Matrix], folder: Path) -> None:
        self.outputs = tuple(value.name or "" for value in model.graph.outputs)
        self._places: dict[str, list[tuple[str, bool]]] = {}
        self._runner = self._open(model, matrices, folder)
        self._inputs = self._placed({matrix.name: matrix.weight for matrix in matrices})

    def with_weights(self, weights: Weights, names: Sequence[str] | None = None) -> Runner:
        """A runner of the graph with ``weights`` [rows, width] by matrix name in the place of the float ones.

        It gives the model's own outputs, or those ``names`` alone, and computes no more than they take.
        """
        inputs = {**self._inputs, **self._placed(weights)}
        # What the graph takes it doesn't give: whoever asks for a value finds it in the feed.
        given = [name for name in names or self.outputs if name in self._runner.outputs]
        return lambda feed: self._runner.run_only({**inputs, **feed}, given)

    def _placed(self, weights: Weights) -> dict[str, npt.NDArray[np.float32]]:
        """Weights as the graph's inputs want them: contiguous, for others would be copied at each run."""
        return {
            place: np.ascontiguousarray(weight.T if transposed else weight)
            for name, weight in weights.items()
            for place, transposed in self._places[name]
        }

    def _open(self, model: ir.Model, matrices: Sequence[Matrix], folder: Path) -> OrtRunner:
        graph = model.graph
        count_inputs, count_outputs = len(graph.inputs), len(graph.outputs)
        kept: list[tuple[ir.Node, int, ir.Value | None]] = []
        present = {value.name for value in (*graph.inputs, *graph.outputs)}
        try:
            for matrix in matrices:
                sites = [(linear.nodes[0], 1) for linear in matrix.linears]
                sites += [(table.node, 0) for table in matrix.tables]
                for node, index in sites:
                    place = f"{matrix.name}.weight_given.{len(kept)}"
                    transposed = index == 1 and not (node.op_type == "Gemm" and attribute(node, "transB", 0))
                    shape = matrix.weight.shape[::-1] if transposed else matrix.weight.shape
                    value = ir.Value(name=place, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
                    kept.append((node, index, node.inputs[index]))
                    node.replace_input_with(index, value)
                    graph.inputs.append(value)
                    self._places.setdefault(matrix.name, []).append((place, transposed))
                for linear in matrix.linears:
                    if linear.source_name not in present:
                        present.add(linear.source_name)
                        linear.source.type = linear.source.type or ir.TensorType(ir.DataType.FLOAT)
                        graph.outputs.append(linear.source)
            path, _ = save_graph(model, folder)
        finally:
            for node, index, original in kept:
                node.replace_input_with(index, original)
            del graph.inputs[count_inputs:]
            del graph.outputs[count_outputs:]
        return open_runner(path)
