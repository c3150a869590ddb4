"""Tensor decomposition: a convolution becomes several small ones, without training.

``tucker`` (Tucker-2, Kim et al. 2016, arXiv 1511.06530): a 1×1 convolution to few channels, the kernel on those, and a
1×1 convolution to all outputs. ``cp`` (Lebedev et al. 2015, arXiv 1412.6553): 1×1, one column, one row for each channel
by itself, 1×1. The decompositions are TensorLy's (``partial_tucker``, ``parafac``).

``ranks`` come from an ``error`` that may be made of each kernel (``max_error`` of its squared norm: each side of
Tucker-2 may take half, CP tries ranks upwards), or, for Tucker-2, from ``vbmf``, which estimates what of the kernel's
unfoldings is more than noise (``edgeslim.algorithms.vbmf``). A convolution that would not lose parameters stays whole.

Kernels are [out, in, height, width]; groups, one-dimensional and 1×1 convolutions are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.pruning import refuse_pruned
from edgeslim.algorithms.vbmf import vbmf_rank
from edgeslim.core import Context, StepResult
from edgeslim.errors import MissingToolError
from edgeslim.graphs.graph_weights import Use, Weight, add_constant, attribute, find_weights, node_name

__all__ = ["TensorDecompose"]

Array = npt.NDArray[np.float32]
_SPATIAL = ("strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True, kw_only=True)
class TensorDecompose:
    """Convolutions in two to four parts. ``max_error`` is the share of a kernel's squared norm that may be lost.

    ``keep`` are patterns of names of layers or weights (``*`` allowed) that stay whole; kernels below ``min_elements``
    do, too.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["tucker", "cp"] = "tucker"
    ranks: Literal["error", "vbmf"] = "error"
    max_error: float = 0.1
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_error < 1:
            raise ValueError(f"max_error: {self.max_error}, expected more than 0 and less than 1")
        if self.method == "cp" and self.ranks == "vbmf":
            raise ValueError("ranks: vbmf with method cp, expected error, or method tucker")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Decomposes convolutions of ``model`` in place.

        Raises:
            MissingToolError: TensorLy isn't installed.
            BadInputError: an earlier step pruned a kernel that would be decomposed.
        """
        skipped: dict[str, str] = {}
        weights = find_weights(model, skipped, kinds=("Conv",), min_elements=self.min_elements, keep=self.keep)
        before = after = changed = 0
        lost = energy = 0.0
        for weight in ctx.progress.track(weights, "decomposing", len(weights)):
            reason = _obstacle(weight)
            parts = [] if reason else self._decompose(weight.array)
            size = sum(part.size for part in parts)
            if not reason and (not parts or size >= weight.array.size):
                reason = "its parts would have no fewer parameters"
            before += weight.array.size
            if reason:
                skipped[weight.name] = reason
                after += weight.array.size
                continue
            refuse_pruned(weight.array, "tensor_decompose", weight.name, "keep")
            after += size
            changed += 1
            lost += float(np.square(weight.array - _compose(parts), dtype=np.float64).sum())
            energy += float(np.square(weight.array, dtype=np.float64).sum())
            _write(model.graph, weight, parts)
        passes.RemoveUnusedNodesPass()(model)
        metrics = {
            "kernel_parameters": float(before),
            "kept": after / before if before else 1.0,
            "weight_error": lost / energy if energy else 0.0,
        }
        return StepResult(model=model, changed=changed, skipped=skipped, metrics=metrics)

    def _decompose(self, kernel: Array) -> list[Array]:
        """The kernels of the parts in their order, or none where there is no rank that pays."""
        return self._tucker(kernel) if self.method == "tucker" else self._cp(kernel)

    def _tucker(self, kernel: Array) -> list[Array]:
        tensorly = _tensorly()
        outputs, inputs = kernel.shape[:2]
        unfolded = kernel.reshape(outputs, -1), kernel.transpose(1, 0, 2, 3).reshape(inputs, -1)
        if self.ranks == "vbmf":
            ranks = [max(vbmf_rank(matrix), 1) for matrix in unfolded]
        else:
            ranks = [_rank_for(matrix, self.max_error / 2) for matrix in unfolded]
        (core, (left, right)), _ = tensorly.partial_tucker(
            kernel.astype(np.float64), rank=ranks, modes=[0, 1], n_iter_max=50, tol=1e-6
        )
        parts = [right.T[:, :, None, None], core, left[:, :, None, None]]
        return [np.ascontiguousarray(part, np.float32) for part in parts]

    def _cp(self, kernel: Array) -> list[Array]:
        tensorly = _tensorly()
        limit = (kernel.size - 1) // sum(kernel.shape)
        bound = self.max_error * float(np.square(kernel, dtype=np.float64).sum())
        rank = 1
        while rank <= limit:
            found = tensorly.parafac(
                kernel.astype(np.float64), rank=rank, n_iter_max=100, tol=1e-6, init="svd", random_state=0
            )
            weights, (outs, ins, rows, columns) = found
            parts = [
                ins.T[:, :, None, None],
                rows.T[:, None, :, None],
                columns.T[:, None, None, :],
                (outs * weights)[:, :, None, None],
            ]
            made = [np.ascontiguousarray(part, np.float32) for part in parts]
            if float(np.square(kernel - _compose(made), dtype=np.float64).sum()) <= bound:
                return made
            rank += max(1, rank // 4)
        return []


def _tensorly() -> Any:
    try:
        import tensorly.decomposition
    except ImportError as error:
        raise MissingToolError(
            "tensor_decompose", "TensorLy isn't installed", hint="pip install 'edgeslim[decompose]'"
        ) from error
    return tensorly.decomposition


def _obstacle(weight: Weight) -> str:
    if weight.array.ndim != 4:
        return f"a kernel of {weight.array.ndim - 2} dimensions, not 2"
    if any(attribute(use.node, "group", 1) != 1 for use in weight.uses):
        return "a grouped convolution"
    return "a 1×1 convolution" if weight.array.shape[2:] == (1, 1) else ""


def _rank_for(matrix: Array, share: float) -> int:
    """The least rank that leaves out at most ``share`` of the squared norm."""
    squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return max(int(np.argmax(tails <= share * squares.sum() + 1e-12 * squares.sum())), 1)


def _compose(parts: Sequence[Array]) -> Array:
    """The kernel that the parts make up together."""
    if len(parts) == 3:
        first, core, last = parts
        return np.asarray(np.einsum("or,rshw,si->oihw", last[:, :, 0, 0], core, first[:, :, 0, 0]), np.float32)
    first, rows, columns, last = (part.reshape(len(part), -1) for part in parts)
    return np.asarray(np.einsum("or,ri,rh,rw->oihw", last, first, rows, columns), np.float32)


def _write(graph: ir.Graph, weight: Weight, parts: Sequence[Array]) -> None:
    """A chain of convolutions in the place of each node that uses ``weight``."""
    values = [add_constant(graph, f"{weight.name}.part{number}", part) for number, part in enumerate(parts, 1)]
    for use in weight.uses:
        node, name = use.node, node_name(use.node)
        source = node.inputs[0]
        nodes: list[ir.Node] = []
        for index, (value, settings) in enumerate(zip(values, _settings(use, parts), strict=True)):
            operands = [source, value]
            if index == len(values) - 1 and len(node.inputs) > 2 and node.inputs[2] is not None:
                operands.append(node.inputs[2])
            nodes.append(ir.node("Conv", operands, settings, name=f"{name}.part{index + 1}"))
            source = nodes[-1].outputs[0]
        output, result = node.outputs[0], nodes[-1].outputs[0]
        result.type, result.shape, kept = output.type, output.shape, output.name
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [result])
        result.name = kept


def _settings(use: Use, parts: Sequence[Array]) -> list[dict[str, Any]]:
    """The attributes of each part: strides, padding and dilation go where the kernel is wide."""
    given = {key: use.node.attributes[key] for key in _SPATIAL if key in use.node.attributes}
    if len(parts) == 3:
        return [{}, dict(given), {}]

    def along(axis: int) -> dict[str, Any]:
        settings: dict[str, Any] = {"group": len(parts[1])}
        for key in ("strides", "dilations"):
            if key in given:
                value = given[key].as_ints()[axis]
                settings[key] = [value, 1] if axis == 0 else [1, value]
        if "pads" in given:
            pads = given["pads"].as_ints()
            settings["pads"] = [pads[0], 0, pads[2], 0] if axis == 0 else [0, pads[1], 0, pads[3]]
        if "auto_pad" in given:
            settings["auto_pad"] = given["auto_pad"].as_string()
        return settings

    return [{}, along(0), along(1), {}]
