"""Magnitude pruning: the smallest weights become zero, without training.

|w| is the importance (Han et al. 2015, arXiv 1506.02626). ``scope`` says what competes: the weights of one ``layer``,
or those of all layers (``global``), each divided by its layer's root mean square (``normalize``), since layers differ
in scale. ``threshold`` removes what is below so many root mean squares, not a share. ``pattern = "2:4"`` keeps 2
of each 4 successive inputs of an output. Zeros cost little to store; stock ONNX Runtime runs them like other weights.

Where a later step trains, this one works on the torch model, and its masks keep the zeros through that training. To
prune by a schedule inside training is a setting of ``finetune`` and ``distill``.

Weights: MatMul and Gemm [in, out] (patterns run along ``in``), Conv [out, in, ...], tables of a Gather [rows, width]
where ``embeddings`` says so. In a torch model the
same of linear and convolutional layers, and embeddings. Biases and norms stay.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.pruning import keep_global, keep_n_of_m, parse_pattern
from edgeslim.core import Context, StepResult
from edgeslim.graphs.graph_weights import KINDS, Weight, find_weights, write_weight

if TYPE_CHECKING:
    from edgeslim.training.torch_model import TorchModel

__all__ = ["PruneMagnitude"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PruneMagnitude:
    """Removes the share ``sparsity`` of the weights, or those below ``threshold`` root mean squares if it isn't 0.

    ``pattern`` N:M keeps N of each M inputs of an output, and then neither counts. ``keep`` are patterns of names of
    layers or weights (``*`` allowed) that stay whole; weights below ``min_elements`` do, too.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "either"

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

    def run(self, model: Any, ctx: Context) -> StepResult[Any]:
        """Prunes ``model`` in place: an ``onnx_ir.Model``, or a ``TorchModel``, whose masks then keep the zeros."""
        skipped: dict[str, str] = {}
        found = (
            self._graph_matrices(model, skipped)
            if isinstance(model, ir.Model)
            else self._torch_matrices(model, skipped)
        )
        pattern = parse_pattern(self.pattern)
        if pattern is not None:
            found = [item for item in found if _fits(item, pattern, skipped)]
        masks = self._choose([item.values for item in found], pattern)
        zeros = sum(int((~mask).sum()) for mask in ctx.progress.track(masks, "pruning", len(masks)))
        if isinstance(model, ir.Model):
            for item, mask in zip(found, masks, strict=True):
                assert item.weight is not None
                pruned = np.where(mask, item.values, np.float32(0))
                write_weight(item.weight, item.weight.from_matrix(pruned) if item.matrix else pruned)
        else:
            model = _mask_module(model, {item.name: mask for item, mask in zip(found, masks, strict=True)})
        total = sum(item.values.size for item in found)
        metrics = {"weights": float(total), "sparsity": zeros / total if total else 0.0}
        return StepResult(model=model, changed=len(found), skipped=skipped, metrics=metrics)

    def _graph_matrices(self, model: ir.Model, skipped: dict[str, str]) -> list[_Item]:
        kinds = [kind for kind in KINDS if self.embeddings or kind != "Gather"]
        kinds = [kind for kind in kinds if self.convolutions or kind != "Conv"]
        weights = find_weights(model, skipped, kinds=kinds, min_elements=self.min_elements, keep=self.keep)
        return [
            _Item(
                name=weight.name,
                values=weight.array if weight.obstacle_to_matrix() else weight.matrix(),
                matrix=not weight.obstacle_to_matrix(),
                obstacle=weight.obstacle_to_matrix(),
                weight=weight,
            )
            for weight in weights
        ]

    def _torch_matrices(self, model: TorchModel, skipped: dict[str, str]) -> list[_Item]:
        from edgeslim.training.gradual_pruning import prunable_weights

        names, others = prunable_weights(model.module, ("*",))
        if self.embeddings:
            tables, _ = prunable_weights(model.module, ("*",), embeddings=True)
            names += tables
        skipped |= {name: reason for name, reason in others.items() if name not in names}
        parameters = dict(model.module.named_parameters())
        found = []
        for name in names:
            array = parameters[name].detach().float().cpu().numpy()
            layer = name.rpartition(".")[0]
            if any(fnmatch.fnmatchcase(one, pattern) for one in (name, layer) for pattern in self.keep):
                skipped[name] = "kept by the recipe"
            elif array.ndim > 2 and not self.convolutions:
                skipped[name] = "a convolution, and convolutions = false"
            elif array.size < self.min_elements:
                skipped[name] = f"it has {array.size} elements, fewer than min_elements = {self.min_elements}"
            else:
                found.append(_Item(name=name, values=array.reshape(len(array), -1).T, matrix=True))
        return found

    def _choose(self, matrices: Sequence[npt.NDArray[np.float32]], pattern: tuple[int, int] | None) -> list[Mask]:
        if not matrices:
            return []
        if pattern is not None:
            return [keep_n_of_m(np.abs(matrix), *pattern) for matrix in matrices]
        scaled = [_importance(matrix) for matrix in matrices]
        if self.threshold:
            return [values >= self.threshold for values in scaled]
        if self.scope == "layer":
            return [keep_global([values], self.sparsity)[0] for values in scaled]
        return keep_global(scaled if self.normalize else [np.abs(matrix) for matrix in matrices], self.sparsity)


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A weight as it is pruned: ``values`` [in, out] where it is a ``matrix``, else as it is stored."""

    name: str
    values: npt.NDArray[np.float32]
    matrix: bool
    obstacle: str = ""
    weight: Weight | None = None


def _importance(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """|w| in root mean squares of the tensor."""
    values = np.abs(array.astype(np.float64))
    spread = float(np.sqrt(np.square(values).mean()))
    return values / (spread or 1.0)


def _fits(item: _Item, pattern: tuple[int, int], skipped: dict[str, str]) -> bool:
    reason = item.obstacle
    if not reason and len(item.values) % pattern[1]:
        reason = f"its {len(item.values)} inputs aren't a multiple of {pattern[1]}"
    if reason:
        skipped[item.name] = reason
    return not reason


def _mask_module(model: TorchModel, masks: Mapping[str, Mask]) -> TorchModel:
    """``model`` with its weights masked, those of earlier stages included; masks are [in, out]."""
    import torch

    from edgeslim.training.masks import apply_masks, join_masks

    parameters = dict(model.module.named_parameters())
    made = {
        name: torch.from_numpy(np.ascontiguousarray(mask.T)).reshape(parameters[name].shape).to(parameters[name].device)
        for name, mask in masks.items()
    }
    joined = join_masks(model.masks, made)
    apply_masks(model.module, joined)
    return replace(model, masks=joined)
