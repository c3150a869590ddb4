"""Magnitude pruning: the smallest weights become zero, without training.

|w| is the importance (Han et al. 2015, arXiv 1506.02626). ``scope`` says what competes: the weights of one ``layer``,
or those of all layers (``global``), each divided by its layer's root mean square (``normalize``), since layers differ
in scale. ``threshold`` removes what is below so many root mean squares, not a share. ``pattern = "2:4"`` keeps 2
of each 4 successive inputs of an output. Zeros cost little to store; stock ONNX Runtime runs them like other weights.

Weights: MatMul and Gemm [in, out] (patterns run along ``in``), Conv [out, in, ...], tables of a Gather [rows, width]
where ``embeddings`` says so. Biases and norms stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.graph_weights import KINDS, Weight, find_weights, write_weight
from edgeslim.pruning import keep_global, keep_n_of_m, parse_pattern, sparsity_of

__all__ = ["PruneMagnitude"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PruneMagnitude:
    """Removes the share ``sparsity`` of the weights, or those below ``threshold`` root mean squares if it isn't 0.

    ``pattern`` N:M keeps N of each M inputs of an output, and then neither counts. ``keep`` are patterns of names of
    layers or weights (``*`` allowed) that stay whole; weights below ``min_elements`` do, too.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    sparsity: float = 0.5
    threshold: float = 0.0
    pattern: str = "none"
    scope: Literal["layer", "global"] = "layer"
    normalize: bool = True
    embeddings: bool = False
    convolutions: bool = True
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_pattern(self.pattern)
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity}, expected more than 0 and less than 1")
        if self.threshold < 0:
            raise ValueError(f"threshold: {self.threshold}, expected 0 (none) or more")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Prunes ``model`` in place."""
        skipped: dict[str, str] = {}
        kinds = [kind for kind in KINDS if self.embeddings or kind != "Gather"]
        kinds = [kind for kind in kinds if self.convolutions or kind != "Conv"]
        weights = find_weights(model, skipped, kinds=kinds, min_elements=self.min_elements, keep=self.keep)
        pattern = parse_pattern(self.pattern)
        if pattern is not None:
            weights = [weight for weight in weights if _fits(weight, pattern, skipped)]
        masks = self._choose(weights, pattern)
        zeros = 0
        for weight, keep in ctx.progress.track(zip(weights, masks, strict=True), "pruning", len(weights)):
            pruned = np.where(keep, weight.array, np.float32(0))
            write_weight(weight, pruned)
            zeros += round(sparsity_of(pruned) * pruned.size)
        total = sum(weight.array.size for weight in weights)
        metrics = {"weights": float(total), "sparsity": zeros / total if total else 0.0}
        return StepResult(model=model, changed=len(weights), skipped=skipped, metrics=metrics)

    def _choose(self, weights: Sequence[Weight], pattern: tuple[int, int] | None) -> list[Mask]:
        if not weights:
            return []
        if pattern is not None:
            masks = [keep_n_of_m(np.abs(weight.matrix()), *pattern) for weight in weights]
            return [weight.from_matrix(mask) != 0 for weight, mask in zip(weights, masks, strict=True)]
        scaled = [_importance(weight.array) for weight in weights]
        if self.threshold:
            return [values >= self.threshold for values in scaled]
        if self.scope == "layer":
            return [keep_global([values], self.sparsity)[0] for values in scaled]
        return keep_global(scaled if self.normalize else [np.abs(weight.array) for weight in weights], self.sparsity)


def _importance(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """|w| in root mean squares of the tensor."""
    values = np.abs(array.astype(np.float64))
    spread = float(np.sqrt(np.square(values).mean()))
    return values / (spread or 1.0)


def _fits(weight: Weight, pattern: tuple[int, int], skipped: dict[str, str]) -> bool:
    reason = weight.obstacle_to_matrix()
    if not reason and weight.matrix().shape[0] % pattern[1]:
        reason = f"its {weight.matrix().shape[0]} inputs aren't a multiple of {pattern[1]}"
    if reason:
        skipped[weight.name] = reason
    return not reason
