"""Sensitivity pruning: the weights go whose removal changes the layer's output (or the loss) least.

``method``:

- ``obs``: Optimal Brain Surgeon as SparseGPT makes it affordable (Frantar & Alistarh 2023, arXiv 2301.00774): the
  weights that stay make up for those that go, by the second moments of the layer's inputs. It needs no gradients.
- ``activation``: |w|·‖x‖ (Wanda, Sun et al. 2023, arXiv 2306.11695), without any update.
- ``gradient``: |w·∂L/∂w|, and ``fisher``: w²·(∂L/∂w)², means over samples, without any update. L is the cross entropy
  of labelled samples, and otherwise what the task makes of the float model's own outputs
  (``edgeslim.quantizing.weight_gradients``).

``scope`` layer gives each layer the same sparsity. With ``global`` all weights compete by what their removal costs the
answer; for ``obs`` the mean squared gradient of each output says what an error there costs. See
``edgeslim.algorithms.obs``, also for what differs from the paper.

Layout: matrices [in, out]; a convolution's inputs are (channel, row, column) of its kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.obs import obs_scores, prune_obs, refit_kept
from edgeslim.algorithms.pruning import keep_global, keep_n_of_m, parse_pattern, sparsity_of
from edgeslim.core import Context, StepResult
from edgeslim.graphs.graph_weights import Weight, find_weights, write_weight
from edgeslim.quantizing.layer_inputs import input_moments, moment_key
from edgeslim.quantizing.weight_gradients import output_moments, weight_importance

__all__ = ["PruneSensitivity"]

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PruneSensitivity:
    """Removes the share ``sparsity`` of the weights, or by ``pattern`` N:M all but N of each M inputs of an output.

    ``damping`` is added to the moments' diagonal, as a share of its mean. ``refit`` finds the best values of all
    weights that stay once it is known which (``obs`` alone). ``keep`` are patterns of names of layers or
    weights (``*`` allowed) that stay whole; weights below ``min_elements`` do, too.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["obs", "activation", "gradient", "fisher"] = "obs"
    sparsity: float = 0.5
    pattern: str = "none"
    scope: Literal["layer", "global"] = "layer"
    damping: float = 0.01
    refit: bool = True
    convolutions: bool = True
    gradient_samples: int = 128
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_pattern(self.pattern)
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity}, expected more than 0 and less than 1")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: {self.damping}, expected more than 0 and at most 1")
        if self.scope == "global" and (self.method == "activation" or self.pattern != "none"):
            raise ValueError("scope: global, expected layer for method activation and for patterns")
        if self.gradient_samples < 1:
            raise ValueError(f"gradient_samples: {self.gradient_samples}, expected at least 1")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Prunes ``model`` in place.

        Raises:
            BadInputError: there is something to prune and nothing to calibrate with, or activations aren't finite.
        """
        skipped: dict[str, str] = {}
        weights = self._weights(model, skipped)
        pruned = self._prune_all(model, weights, ctx) if weights else []
        zeros = 0
        for weight, after in zip(weights, pruned, strict=True):
            write_weight(weight, weight.from_matrix(after))
            zeros += round(sparsity_of(after) * after.size)
        total = sum(weight.array.size for weight in weights)
        metrics = {"weights": float(total), "sparsity": zeros / total if total else 0.0}
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

    def _prune_all(self, model: ir.Model, weights: Sequence[Weight], ctx: Context) -> list[Matrix]:
        """The pruned matrices."""
        if self.method in ("gradient", "fisher"):
            kind: Literal["gradient", "fisher"] = "gradient" if self.method == "gradient" else "fisher"
            found = weight_importance(model, weights, ctx, kind, samples=self.gradient_samples)
            return self._mask(weights, [weight.matrix_of(found[weight.name]) for weight in weights])
        moments = input_moments(model, weights, ctx)
        if self.method == "activation":
            spreads = [np.sqrt(np.diag(moments[moment_key(weight)])) for weight in weights]
            scores = [
                np.abs(weight.matrix()) * spread[:, None] for weight, spread in zip(weights, spreads, strict=True)
            ]
            return self._mask(weights, scores)
        return self._prune_obs(model, weights, moments, ctx)

    def _mask(self, weights: Sequence[Weight], scores: Sequence[Array]) -> list[Matrix]:
        """Weights without the least important ones."""
        pattern = parse_pattern(self.pattern)
        if pattern is not None:
            masks = [keep_n_of_m(values, *pattern) for values in scores]
        elif self.scope == "global":
            masks = keep_global(scores, self.sparsity)
        elif self.method == "activation":  # within each output, as Wanda has it
            masks = [
                np.stack([keep_global([column], self.sparsity)[0] for column in values.T], axis=1) for values in scores
            ]
        else:
            masks = [keep_global([values], self.sparsity)[0] for values in scores]
        return [np.where(mask, weight.matrix(), np.float32(0)) for weight, mask in zip(weights, masks, strict=True)]

    def _prune_obs(
        self, model: ir.Model, weights: Sequence[Weight], moments: Mapping[str, Array], ctx: Context
    ) -> list[Matrix]:
        factors = {key: factor_inverse(moment, self.damping) for key, moment in moments.items()}
        shares, gains = [self.sparsity] * len(weights), dict[str, Array]()
        if self.scope == "global":
            squares = output_moments(model, weights, ctx, samples=self.gradient_samples)
            gains = {name: np.diag(moment) for name, moment in squares.items()}
            scores = [
                obs_scores(weight.matrix(), factors[moment_key(weight)], gains[weight.name]) for weight in weights
            ]
            shares = [1 - float(mask.mean()) for mask in keep_global(scores, self.sparsity)]
        found = []
        for weight, share in ctx.progress.track(zip(weights, shares, strict=True), "pruning", len(weights)):
            matrix, key = weight.matrix(), moment_key(weight)
            pruned = prune_obs(
                matrix,
                factors[key],
                sparsity=share,
                pattern=parse_pattern(self.pattern),
                output_weights=gains.get(weight.name),
            )
            found.append(refit_kept(matrix, pruned, moments[key], damping=self.damping) if self.refit else pruned)
        return found
