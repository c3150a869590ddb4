"""Sensitivity pruning: the weights go whose removal changes the layer's output (or the loss) least.

``method``:

- ``obs``: Optimal Brain Surgeon as SparseGPT makes it affordable (Frantar & Alistarh 2023, arXiv 2301.00774): the
  weights that stay make up for those that go, by the second moments of the layer's inputs. It needs no gradients.
- ``activation``: |w|·‖x‖ (Wanda, Sun et al. 2023, arXiv 2306.11695), without any update.

``scope`` layer gives each layer the same sparsity. ``global`` lets layers compete by the share of their output's energy
that a weight's removal costs, so that a layer with idle weights gives more. See ``edgeslim.obs``, also for what differs
from the paper.

Layout: matrices [in, out]; a convolution's inputs are (channel, row, column) of its kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.gptq import factor_inverse
from edgeslim.graph_weights import Weight, find_weights, write_weight
from edgeslim.layer_inputs import input_moments, moment_key
from edgeslim.obs import obs_scores, prune_obs, refit_kept
from edgeslim.pruning import keep_global, keep_n_of_m, parse_pattern, sparsity_of

__all__ = ["PruneSensitivity"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PruneSensitivity:
    """Removes the share ``sparsity`` of the weights, or by ``pattern`` N:M all but N of each M inputs of an output.

    ``damping`` is added to the moments' diagonal, as a share of its mean. ``refit`` finds the best values of all
    weights that stay once it is known which (``obs`` alone). ``keep`` are patterns of names of layers or
    weights (``*`` allowed) that stay whole; weights below ``min_elements`` do, too.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["obs", "activation"] = "obs"
    sparsity: float = 0.5
    pattern: str = "none"
    scope: Literal["layer", "global"] = "layer"
    damping: float = 0.01
    refit: bool = True
    convolutions: bool = True
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_pattern(self.pattern)
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity}, expected more than 0 and less than 1")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: {self.damping}, expected more than 0 and at most 1")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Prunes ``model`` in place.

        Raises:
            BadInputError: there is something to prune and nothing to calibrate with, or activations aren't finite.
        """
        skipped: dict[str, str] = {}
        weights = self._weights(model, skipped)
        moments = input_moments(model, weights, ctx) if weights else {}
        factors = {key: factor_inverse(moment, self.damping) for key, moment in moments.items()}
        shares = self._shares(weights, moments, factors)
        zeros, lost, energy = 0, 0.0, 0.0
        for weight, share in ctx.progress.track(zip(weights, shares, strict=True), "pruning", len(weights)):
            key = moment_key(weight)
            before = weight.matrix()
            after = self._prune(before, moments[key], factors[key], share)
            write_weight(weight, weight.from_matrix(after))
            zeros += round(sparsity_of(after) * after.size)
            difference = after.astype(np.float64) - before
            lost += float(np.sum((moments[key] @ difference) * difference))
            energy += float(np.sum((moments[key] @ before) * before))
        total = sum(weight.array.size for weight in weights)
        metrics = {
            "weights": float(total),
            "sparsity": zeros / total if total else 0.0,
            "output_error": lost / energy if energy else 0.0,
        }
        return StepResult(model=model, changed=len(weights), skipped=skipped, metrics=metrics)

    def _weights(self, model: ir.Model, skipped: dict[str, str]) -> list[Weight]:
        kinds = ("MatMul", "Gemm", "Conv") if self.convolutions else ("MatMul", "Gemm")
        pattern = parse_pattern(self.pattern)
        weights = []
        for weight in find_weights(model, skipped, kinds=kinds, min_elements=self.min_elements, keep=self.keep):
            reason = weight.obstacle_to_matrix()
            if not reason and pattern is not None and weight.matrix().shape[0] % pattern[1]:
                reason = f"its {weight.matrix().shape[0]} inputs aren't a multiple of {pattern[1]}"
            if reason:
                skipped[weight.name] = reason
            else:
                weights.append(weight)
        return weights

    def _shares(
        self, weights: Sequence[Weight], moments: Mapping[str, Array], factors: Mapping[str, Array]
    ) -> list[float]:
        """Each weight's sparsity."""
        if self.scope == "layer" or not weights:
            return [self.sparsity] * len(weights)
        scores = []
        for weight in weights:
            key, matrix = moment_key(weight), weight.matrix().astype(np.float64)
            energy = float(np.sum((moments[key] @ matrix) * matrix)) or 1.0
            scores.append(obs_scores(matrix, factors[key]) / energy)
        return [1 - mask.mean() for mask in keep_global(scores, self.sparsity)]

    def _prune(
        self, matrix: npt.NDArray[np.float32], moment: Array, factor: Array, share: float
    ) -> npt.NDArray[np.float32]:
        pattern = parse_pattern(self.pattern)
        if self.method == "obs":
            pruned = prune_obs(matrix, factor, sparsity=share, pattern=pattern)
            return refit_kept(matrix, pruned, moment, damping=self.damping) if self.refit else pruned
        importance = np.abs(matrix) * np.sqrt(np.diag(moment))[:, None]
        if pattern is not None:
            keep = keep_n_of_m(importance, *pattern)
        else:  # within each output, as Wanda has it
            keep = np.stack([keep_global([column], share)[0] for column in importance.T], axis=1)
        return np.where(keep, matrix, np.float32(0))
