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

Where a later step trains, this one works on the torch model, and that step trains both factors: they stay two.

Layout: weight [in, out] = left [in, rank] @ right [rank, out]; a Gemm's bias becomes an Add after the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.factorization import Spectrum, allocate_ranks, ranks_for_error, shrink_moment, whitened_svd
from edgeslim.algorithms.pruning import keep_zeros, refuse_pruned
from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import Weight, add_constant, find_weights, node_name
from edgeslim.quantizing.layer_inputs import input_moments, moment_key
from edgeslim.quantizing.weight_gradients import output_moments, weight_fisher

if TYPE_CHECKING:
    from edgeslim.training.torch_model import TorchModel

__all__ = ["LowRank"]

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]
Moments = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``keep`` is the share of the linears' parameters that may stay, unless ``max_error`` (0 for none) is given.

    Ranks are multiples of ``multiple``, which kernels like. ``fisher`` and ``both`` take gradients from at most
    ``gradient_samples`` batches, ``both`` with ``probes`` random projections of each answer; ``shrinkage`` is how far
    it draws their moments towards equal directions. ``keep_dense`` are patterns of names of layers or weights
    (``*`` allowed) that stay whole.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "either"

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

    def run(self, model: Any, ctx: Context) -> StepResult[Any]:
        """Divides layers of ``model`` in place: an ``onnx_ir.Model`` or a ``TorchModel``.

        Raises:
            BadInputError: ``keep`` can't be reached, there is nothing to calibrate with, or an earlier step pruned a
                weight that would be divided.
        """
        return self._divide_graph(model, ctx) if isinstance(model, ir.Model) else self._divide_module(model, ctx)

    def _divide_graph(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        skipped: dict[str, str] = {}
        weights = {weight.name: weight for weight in self._weights(model, skipped)}
        inputs, outputs = self._graph_moments(model, list(weights.values()), ctx)
        spectra = self._decompose({name: weight.matrix() for name, weight in weights.items()}, inputs, outputs, ctx)
        ranks, metrics = self._ranks(spectra, skipped)
        for name, rank in ranks.items():
            refuse_pruned(weights[name].array, "low_rank", name, "keep_dense")
            _divide(model.graph, weights[name], spectra[name], rank)
        passes.RemoveUnusedNodesPass()(model)
        return StepResult(model=model, changed=len(ranks), skipped=skipped, metrics=metrics)

    def _divide_module(self, model: TorchModel, ctx: Context) -> StepResult[TorchModel]:
        from edgeslim.training.low_rank_layers import divide_linears, find_linears  # torch

        skipped: dict[str, str] = {}
        found = find_linears(model, skipped, min_elements=self.min_elements, keep=self.keep_dense)
        reasons = {name: self._too_small(matrix) or _pruned(model, name, matrix) for name, matrix in found.items()}
        skipped |= {name: reason for name, reason in reasons.items() if reason}
        matrices = {name: matrix for name, matrix in found.items() if not reasons[name]}
        inputs, outputs = self._module_moments(model, matrices, ctx)
        if self.method in ("activation", "both"):
            unseen = [name for name in matrices if name not in inputs]
            skipped |= dict.fromkeys(unseen, "no calibration sample reaches it")
            matrices = {name: matrices[name] for name in matrices if name in inputs}
        spectra = self._decompose(matrices, inputs, outputs, ctx)
        ranks, metrics = self._ranks(spectra, skipped)
        for name in ranks:
            refuse_pruned(matrices[name], "low_rank", name, "keep_dense")
        model = divide_linears(model, {name: spectra[name].factors(rank) for name, rank in ranks.items()})
        return StepResult(model=model, changed=len(ranks), skipped=skipped, metrics=metrics)

    def _weights(self, model: ir.Model, skipped: dict[str, str]) -> list[Weight]:
        found = find_weights(
            model, skipped, kinds=("MatMul", "Gemm"), min_elements=self.min_elements, keep=self.keep_dense
        )
        weights = []
        for weight in found:
            reason = weight.obstacle_to_matrix()
            if reason := reason or self._too_small(weight.matrix()):
                skipped[weight.name] = reason
            else:
                weights.append(weight)
        return weights

    def _too_small(self, matrix: Matrix) -> str:
        """Why two factors of ``matrix`` [in, out] can't be smaller than it, or an empty string."""
        rows, columns = matrix.shape
        if self.multiple * (rows + columns) < rows * columns:
            return ""
        return f"two factors of rank {self.multiple} are no smaller than its {rows} × {columns}"

    def _graph_moments(self, model: ir.Model, weights: Sequence[Weight], ctx: Context) -> tuple[Moments, Moments]:
        """What the inputs and the outputs of the weights are weighed by."""
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        if self.method in ("activation", "both") and weights:
            inputs = {
                weight.name: moments[moment_key(weight)]
                for moments in [input_moments(model, weights, ctx)]
                for weight in weights
            }
        if self.method == "both" and weights:
            outputs = output_moments(model, weights, ctx, samples=self.gradient_samples, probes=self.probes)
        if self.method == "fisher" and weights:
            fisher = weight_fisher(model, weights, ctx, samples=self.gradient_samples)
            inputs = {weight.name: weight.matrix_of(fisher[weight.name]).sum(axis=1) for weight in weights}
        return inputs, outputs

    def _module_moments(self, model: TorchModel, matrices: dict[str, Matrix], ctx: Context) -> tuple[Moments, Moments]:
        """The same of a torch model's layers."""
        from edgeslim.training import low_rank_layers as layers  # torch

        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        if self.method in ("activation", "both") and matrices:
            inputs = layers.linear_input_moments(model, list(matrices), ctx)
        if self.method == "both" and matrices:
            reached = {name: matrix for name, matrix in matrices.items() if name in inputs}
            outputs = layers.linear_output_moments(
                model, reached, ctx, samples=self.gradient_samples, probes=self.probes
            )
        if self.method == "fisher" and matrices:
            inputs = layers.linear_fisher(model, list(matrices), ctx, samples=self.gradient_samples)
        return inputs, outputs

    def _decompose(
        self, matrices: Mapping[str, Matrix], inputs: Moments, outputs: Moments, ctx: Context
    ) -> dict[str, Spectrum]:
        spectra = {}
        for name, matrix in ctx.progress.track(list(matrices.items()), "decomposing", len(matrices)):
            right = shrink_moment(outputs[name], self.shrinkage) if name in outputs else None
            spectrum = whitened_svd(matrix, inputs.get(name), right)
            # Layers compete by their relative error, unless gradients say what an error costs.
            power = float(np.sqrt(np.square(spectrum.values).sum())) if self.method in ("plain", "activation") else 1.0
            power = power or 1.0
            spectra[name] = Spectrum(
                values=spectrum.values / power, left=spectrum.left * power**0.5, right=spectrum.right * power**0.5
            )
        return spectra

    def _ranks(
        self, spectra: Mapping[str, Spectrum], skipped: dict[str, str]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """The ranks of what is divided, and metrics; why others stay whole goes into ``skipped``."""
        found: list[int | None] = []
        try:
            if spectra and self.max_error:
                found = ranks_for_error(list(spectra.values()), self.max_error, multiple=self.multiple)
            elif spectra:
                found = allocate_ranks(list(spectra.values()), self.keep, multiple=self.multiple)
        except ValueError as error:
            raise BadInputError("low_rank", str(error), expected="a larger keep, or a smaller multiple") from error
        ranks = {name: rank for name, rank in zip(spectra, found, strict=True) if rank is not None}
        whole = [name for name in spectra if name not in ranks]
        skipped |= dict.fromkeys(whole, "dividing it would cost more error for its size than dividing the others")
        before = sum(spectrum.dense_size for spectrum in spectra.values())
        after = sum(ranks[name] * sum(one.shape) if name in ranks else one.dense_size for name, one in spectra.items())
        metrics = {"linears_parameters": float(before), "kept": after / before if before else 1.0}
        if ranks:
            metrics |= {"rank_min": float(min(ranks.values())), "rank_max": float(max(ranks.values()))}
        return ranks, metrics


def _pruned(model: TorchModel, name: str, matrix: Matrix) -> str:
    """Why a layer with too few zeros to refuse the recipe for stays whole all the same, or an empty string."""
    masked = f"{name}.weight" in model.masks and keep_zeros(matrix) is None
    return "an earlier step pruned some of it" if masked else ""


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
