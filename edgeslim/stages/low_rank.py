"""Low rank: a linear layer's matrix becomes two thin ones, and one MatMul becomes two.

``method`` says what the decomposition minimizes: the weights (``plain``), the layer's output on calibration data
(``activation``: SVD-LLM, Wang et al. 2024, arXiv 2403.07378), the weights by their Fisher information (``fisher``:
FWSVD, Hsu et al. 2022, arXiv 2207.00112), or the loss to second order (``both``: inputs' and output gradients' second
moments, as K-FAC has it). See ``edgeslim.algorithms.factorization``.

Gradients' moments are noisy: those of 128 texts, with one random projection each, came to a mean cosine of 0.81 on
all-MiniLM-L6-v2 at 70 % of the linears' parameters (300 other texts), less than ``activation`` with 0.84. Four
projections a text came to 0.93, one and a ``shrinkage`` of 0.3 to 0.92. Fitting each layer anew to what the layers
before it had become brought nothing (0.84 with ``activation``; 0.91 with ranks from gradients).

Ranks come from one budget for all layers: ``keep`` of the linears' parameters, or ``max_error``, the share of squared
error; a layer that pays less for its size than others stays dense. A layer is only divided where two factors are
smaller than one matrix. Both are ordinary MatMuls, which the stages after this one quantize.

Layout: weight [in, out] = left [in, rank] @ right [rank, out]; a Gemm's bias becomes an Add after the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.factorization import Spectrum, allocate_ranks, ranks_for_error, shrink_moment, whitened_svd
from edgeslim.algorithms.pruning import refuse_pruned
from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import Weight, add_constant, find_weights, node_name
from edgeslim.quantizing.layer_inputs import input_moments, moment_key
from edgeslim.quantizing.weight_gradients import output_moments, weight_fisher

__all__ = ["LowRank"]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``keep`` is the share of the linears' parameters that may stay, unless ``max_error`` (0 for none) is given.

    Ranks are multiples of ``multiple``, which kernels like. ``fisher`` and ``both`` take gradients from at most
    ``gradient_samples`` batches, ``both`` with ``probes`` random projections of each answer; ``shrinkage`` is how far
    it draws their moments towards equal directions. ``keep_dense`` are patterns of names of layers or weights
    (``*`` allowed) that stay whole.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["plain", "activation", "fisher", "both"] = "activation"
    keep: float = 0.9
    max_error: float = 0.0
    multiple: int = 8
    gradient_samples: int = 128
    probes: int = 4
    shrinkage: float = 0.2
    min_elements: int = 16384
    keep_dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep: {self.keep}, expected more than 0 and less than 1")
        if not 0 <= self.max_error < 1:
            raise ValueError(f"max_error: {self.max_error}, expected 0 (none) to less than 1")
        if self.multiple < 1:
            raise ValueError(f"multiple: {self.multiple}, expected at least 1")
        for name in ("gradient_samples", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage: {self.shrinkage}, expected 0 to 1")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Divides layers of ``model`` in place.

        Raises:
            BadInputError: ``keep`` can't be reached, there is nothing to calibrate with, or an earlier step pruned a
                weight that would be divided.
        """
        skipped: dict[str, str] = {}
        weights = self._weights(model, skipped)
        spectra = self._decompose(model, weights, ctx)
        try:
            ranks = self._ranks(spectra)
        except ValueError as error:
            raise BadInputError("low_rank", str(error), expected="a larger keep, or a smaller multiple") from error
        before = after = 0
        divided = 0
        for weight, spectrum, rank in zip(weights, spectra, ranks, strict=True):
            before += spectrum.dense_size
            if rank is None:
                skipped[weight.name] = "dividing it would cost more error for its size than dividing the others"
                after += spectrum.dense_size
            else:
                refuse_pruned(weight.array, "low_rank", weight.name, "keep_dense")
                _divide(model.graph, weight, spectrum, rank)
                after += rank * sum(spectrum.shape)
                divided += 1
        passes.RemoveUnusedNodesPass()(model)
        metrics = {"linears_parameters": float(before), "kept": after / before if before else 1.0}
        used = [float(rank) for rank in ranks if rank is not None]
        if used:
            metrics |= {"rank_min": min(used), "rank_max": max(used)}
        return StepResult(model=model, changed=divided, skipped=skipped, metrics=metrics)

    def _weights(self, model: ir.Model, skipped: dict[str, str]) -> list[Weight]:
        found = find_weights(
            model, skipped, kinds=("MatMul", "Gemm"), min_elements=self.min_elements, keep=self.keep_dense
        )
        weights = []
        for weight in found:
            reason = weight.obstacle_to_matrix()
            rows, columns = weight.matrix().shape[-2:]
            if not reason and self.multiple * (rows + columns) >= rows * columns:
                reason = f"two factors of rank {self.multiple} are no smaller than its {rows} × {columns}"
            if reason:
                skipped[weight.name] = reason
            else:
                weights.append(weight)
        return weights

    def _decompose(self, model: ir.Model, weights: Sequence[Weight], ctx: Context) -> list[Spectrum]:
        inputs: dict[str, npt.NDArray[np.float64]] = {}
        outputs: dict[str, npt.NDArray[np.float64]] = {}
        if self.method in ("activation", "both") and weights:
            inputs = {
                weight.name: moments[moment_key(weight)]
                for moments in [input_moments(model, weights, ctx)]
                for weight in weights
            }
        if self.method == "both" and weights:
            found = output_moments(model, weights, ctx, samples=self.gradient_samples, probes=self.probes)
            outputs = {name: shrink_moment(moment, self.shrinkage) for name, moment in found.items()}
        if self.method == "fisher" and weights:
            fisher = weight_fisher(model, weights, ctx, samples=self.gradient_samples)
            inputs = {weight.name: weight.matrix_of(fisher[weight.name]).sum(axis=1) for weight in weights}
        spectra = []
        for weight in ctx.progress.track(weights, "decomposing", len(weights)):
            spectrum = whitened_svd(weight.matrix(), inputs.get(weight.name), outputs.get(weight.name))
            # Layers compete by their relative error, unless gradients say what an error costs.
            power = float(np.sqrt(np.square(spectrum.values).sum())) if self.method in ("plain", "activation") else 1.0
            power = power or 1.0
            spectra.append(
                Spectrum(
                    values=spectrum.values / power, left=spectrum.left * power**0.5, right=spectrum.right * power**0.5
                )
            )
        return spectra

    def _ranks(self, spectra: Sequence[Spectrum]) -> list[int | None]:
        if not spectra:
            return []
        if self.max_error:
            return ranks_for_error(spectra, self.max_error, multiple=self.multiple)
        return allocate_ranks(spectra, self.keep, multiple=self.multiple)


def _divide(graph: ir.Graph, weight: Weight, spectrum: Spectrum, rank: int) -> None:
    """Two MatMuls in the place of each node that uses ``weight``."""
    left, right = (
        add_constant(graph, f"{weight.name}.{side}", array)
        for side, array in zip(("left", "right"), spectrum.factors(rank), strict=True)
    )
    for use in weight.uses:
        node, name = use.node, node_name(use.node)
        inner = ir.node("MatMul", [node.inputs[0], left], name=f"{name}.left")
        outer = ir.node("MatMul", [inner.outputs[0], right], name=f"{name}.right")
        nodes = [inner, outer]
        if use.kind == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [outer.outputs[0], node.inputs[2]], name=f"{name}.bias"))
        output, result = node.outputs[0], nodes[-1].outputs[0]
        result.type, result.shape, kept = output.type, output.shape, output.name
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [result])
        result.name = kept
