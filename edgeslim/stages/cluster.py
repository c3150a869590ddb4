"""Weight clustering: each tensor gets a codebook of 2 to 8 bits, and so few distinct values that it codes small.

k-means in one dimension, from equally spaced values or quantiles (Han et al. 2015, arXiv 1510.00149; see
``edgeslim.algorithms.clustering``). ``importance = "activation"`` weighs each weight by its input's second moment on
calibration data, so that the layer's output changes least; ``fisher`` by the mean square of its gradient
(``gradient_samples``), so that the model's answer does. In a weight that was pruned zero is a codebook value of its
own: what is zero stays zero, and nothing else becomes zero.

``groups`` divides a weight's outputs (a table's rows) into as many parts with codebooks of their own. All codebooks of
a tensor together have at most 256 values, for that is what the container's CODEBOOK alphabet codes.

``decode`` is the form on disk once decoded: ``float32``; ``float16`` behind a Cast; ``int8`` behind Cast and Mul by one
scale a tensor, centroids rounded to its grid. A table is gathered first, so that only its rows are converted; other
weights become float32 again when the model is loaded. DequantizeLinear would say the same, but ONNX Runtime turns it
and a MatMul into a kernel that rounds activations, too (measured: 0.5 % of the output's range).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.clustering import fit_codebook
from edgeslim.algorithms.pruning import keep_zeros
from edgeslim.core import Context, StepResult
from edgeslim.graphs.graph_weights import KINDS, Weight, add_constant, find_weights, node_name, write_weight
from edgeslim.quantizing.layer_inputs import input_moments, moment_key
from edgeslim.quantizing.weight_gradients import weight_fisher

__all__ = ["Cluster"]

Array = npt.NDArray[np.float32]

MAX_VALUES = 256


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Codebooks of 2**``bits`` values for each of ``groups`` parts of a weight.

    ``keep`` are patterns of names of layers or weights (``*`` allowed) that stay as they are; weights below
    ``min_elements`` do, too, and tables unless ``embeddings`` says so.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    bits: int = 4
    groups: int = 1
    importance: Literal["none", "activation", "fisher"] = "none"
    decode: Literal["float32", "float16", "int8"] = "float32"
    gradient_samples: int = 128
    embeddings: bool = True
    convolutions: bool = True
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits}, expected 1 to 8")
        if self.groups < 1 or self.groups * 2**self.bits > MAX_VALUES:
            raise ValueError(
                f"groups: {self.groups} codebooks of {2**self.bits} values, expected at most {MAX_VALUES} values in all"
            )
        if self.gradient_samples < 1:
            raise ValueError(f"gradient_samples: {self.gradient_samples}, expected at least 1")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Clusters the weights of ``model`` in place.

        Raises:
            BadInputError: ``importance`` needs calibration data, and there is none, or activations aren't finite.
        """
        skipped: dict[str, str] = {}
        kinds = [kind for kind in KINDS if self.embeddings or kind != "Gather"]
        kinds = [kind for kind in kinds if self.convolutions or kind != "Conv"]
        weights = find_weights(model, skipped, kinds=kinds, min_elements=self.min_elements, keep=self.keep)
        moments: dict[str, npt.NDArray[np.float64]] = {}
        weighted = [weight for weight in weights if not weight.obstacle_to_matrix()]
        if self.importance == "activation" and weighted:
            moments = input_moments(model, weighted, ctx)
        fisher: dict[str, npt.NDArray[np.float64]] = {}
        if self.importance == "fisher" and weights:
            fisher = weight_fisher(model, weights, ctx, samples=self.gradient_samples)
        lost = energy = 0.0
        for weight in ctx.progress.track(weights, "clustering", len(weights)):
            importance: npt.NDArray[Any] | None = fisher.get(weight.name)
            if moments and not weight.obstacle_to_matrix():
                spread = np.diag(moments[moment_key(weight)])[:, None]
                importance = weight.from_matrix(np.broadcast_to(spread, weight.matrix().shape))
            clustered = self._cluster(weight, importance)
            stored = self._store(model, weight, clustered)
            lost += float(np.square(stored - weight.array, dtype=np.float64).sum())
            energy += float(np.square(weight.array, dtype=np.float64).sum())
        passes.RemoveUnusedNodesPass()(model)
        metrics = {
            "weights": float(sum(weight.array.size for weight in weights)),
            "weight_error": lost / energy if energy else 0.0,
        }
        return StepResult(model=model, changed=len(weights), skipped=skipped, metrics=metrics)

    def _cluster(self, weight: Weight, importance: npt.NDArray[Any] | None) -> Array:
        """The weight's array with its few values."""
        array = weight.array
        keep_zero = keep_zeros(array) is not None
        # Outputs along axis 0: rows of a table, channels of a convolution, columns of [in, out].
        turned = array.ndim == 2 and weight.uses[0].kind in ("MatMul", "Gemm") and not weight.uses[0].transposed
        parts = np.array_split(array.T if turned else array, self.groups)
        masses: list[npt.NDArray[Any] | None] = [None] * self.groups
        if importance is not None:
            masses = list(np.array_split(importance.T if turned else importance, self.groups))
        done = [
            fit_codebook(part, self.bits, importance=mass, keep_zero=keep_zero).decode() if part.size else part
            for part, mass in zip(parts, masses, strict=True)
        ]
        joined = np.concatenate(done)
        return np.ascontiguousarray(joined.T if turned else joined)

    def _store(self, model: ir.Model, weight: Weight, clustered: Array) -> Array:
        """Writes the weight in the form that ``decode`` names; returns the values that run."""
        if self.decode == "float32":
            write_weight(weight, clustered)
            return clustered
        graph = model.graph
        scale = np.float32(1)
        stored: npt.NDArray[np.float16 | np.int8] = clustered.astype(np.float16)
        if self.decode == "int8":
            scale = np.float32(np.abs(clustered).max() / 127) or np.float32(1)
            rounded = np.rint(clustered / scale)
            # A centroid that rounds to zero would empty its cluster, and zero means pruned.
            rounded = np.where((rounded == 0) & (clustered != 0), np.sign(clustered), rounded)
            stored = rounded.astype(np.int8)
        value = add_constant(graph, f"{weight.name}.clustered", stored)
        factor = None
        if self.decode == "int8":
            factor = add_constant(graph, f"{weight.name}.scale", scale)
        for use in weight.uses:
            _decode_at(
                graph, use.node, use.kind, value, factor, transposed=weight.array.ndim == 2 and _turned(use.node)
            )
        return stored.astype(np.float32) * scale


def _turned(node: ir.Node) -> bool:
    """Whether a Transpose stands between the stored weight and the node."""
    value = node.inputs[1] if node.op_type != "Gather" else node.inputs[0]
    turned = False
    while value is not None and (producer := value.producer()) is not None and producer.op_type != "Constant":
        turned ^= producer.op_type == "Transpose"
        value = producer.inputs[0]
    return turned


def _decode_at(
    graph: ir.Graph, node: ir.Node, kind: str, value: ir.Value, factor: ir.Value | None, *, transposed: bool
) -> None:
    """Lets ``node`` take ``value`` back in float32: before it, or after it where it gathers."""
    name = f"{node_name(node)}.{value.name}"
    if kind == "Gather":
        node.replace_input_with(0, value)
        output = node.outputs[0]
        uses, outputs, kept = list(output.uses()), graph.outputs, output.name
        output.type = ir.TensorType(value.const_value.dtype) if value.const_value is not None else None
        output.name = f"{kept}.stored"
        last = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{name}.float")
        graph.insert_after(node, last)
        if factor is not None:
            scaled = ir.node("Mul", [last.outputs[0], factor], name=f"{name}.scaled")
            graph.insert_after(last, scaled)
            last = scaled
        result = last.outputs[0]
        result.name, result.type, result.shape = kept, ir.TensorType(ir.DataType.FLOAT), output.shape
        for user, index in uses:
            user.replace_input_with(index, result)
        for index, item in enumerate(outputs):
            if item is output:
                outputs[index] = result
        return
    decoded = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}.float")
    graph.insert_before(node, decoded)
    if factor is not None:
        decoded = ir.node("Mul", [decoded.outputs[0], factor], name=f"{name}.scaled")
        graph.insert_before(node, decoded)
    if transposed:
        turn = ir.node("Transpose", [decoded.outputs[0]], {"perm": [1, 0]}, name=f"{name}.transposed")
        graph.insert_before(node, turn)
        decoded = turn
    node.replace_input_with(1, decoded.outputs[0])
