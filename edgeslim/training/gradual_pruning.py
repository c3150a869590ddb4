"""Magnitude pruning inside training, by a cubic schedule: the loop's hook for it.

From ``prune_begin`` to ``prune_end`` (shares of all steps) the sparsity rises as ``s (1 - (1 - t)³)``: fast while many
weights are redundant, slowly towards the end (Zhu and Gupta 2017, arXiv 1710.01878). Every ``prune_every`` steps the
weights that are smallest now are masked, either in each tensor or among all of them (``scope``). Unlike in the paper
what was masked stays masked, so that masks of an earlier stage hold, too. N:M isn't scheduled.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgeslim.training.hooks import KeepMasks
from edgeslim.training.masks import Masks, apply_masks, count_masked, join_masks
from edgeslim.training.torch_model import TorchModel

__all__ = ["GradualPruning", "PruningOptions", "cubic_sparsity", "magnitude_masks", "prunable_weights"]


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Gradual pruning to ``sparsity`` of the weights whose parameters ``prune`` names; 0 prunes nothing.

    ``embedding_sparsity``, if given, is that of the embedding tables, which ``sparsity`` leaves alone.
    """

    sparsity: float = 0.0
    embedding_sparsity: float = 0.0
    prune: tuple[str, ...] = ("*",)
    scope: Literal["layer", "global"] = "layer"
    prune_begin: float = 0.0
    prune_end: float = 0.6
    prune_every: int = 10

    def __post_init__(self) -> None:
        for name in ("sparsity", "embedding_sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected 0 or more and less than 1")
        if not 0 <= self.prune_begin <= self.prune_end <= 1:
            raise ValueError(
                f"prune_begin: {self.prune_begin}, prune_end: {self.prune_end}, expected 0 to 1, the first not later"
            )
        if self.prune_every < 1:
            raise ValueError(f"prune_every: {self.prune_every}, expected at least 1")

    def pruning_hook(self, model: TorchModel) -> tuple[GradualPruning, dict[str, str]]:
        """The hook for ``model``, which keeps its masks in any case, and why other weights are left alone."""
        linear, skipped = prunable_weights(model.module, self.prune)
        tables, _ = prunable_weights(model.module, self.prune, embeddings=True)
        names = dict.fromkeys(linear, self.sparsity) | dict.fromkeys(tables, self.embedding_sparsity)
        names = {name: target for name, target in names.items() if target}
        return GradualPruning(self, names, model.masks), (skipped if self.sparsity else {})


class GradualPruning(KeepMasks):
    """Raises the sparsity of ``targets`` (parameter name to final sparsity) step by step."""

    def __init__(self, options: PruningOptions, targets: Mapping[str, float], masks: Masks) -> None:
        super().__init__(masks)
        self._options, self._targets = options, dict(targets)

    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:  # noqa: ARG002
        """Masks the smallest weights when the schedule says so, and keeps masked ones zero."""
        options, last = self._options, self._last(total)
        due = step == last or (step < last and step >= options.prune_begin * total and not step % options.prune_every)
        apply_masks(module, self.masks)  # momentum may have moved masked weights, which rank lowest as zeros
        if self._targets and due:
            begin = int(options.prune_begin * total)
            share = cubic_sparsity(1.0, 1.0 if step == last else (step - begin) / max(1, last - begin))
            parameters = {name: value for name, value in module.named_parameters() if name in self._targets}
            for target in sorted(set(self._targets.values())):
                group = {name: value for name, value in parameters.items() if self._targets[name] == target}
                made = magnitude_masks(group, target * share, scope=options.scope)
                self.masks = join_masks(self.masks, made)
            apply_masks(module, self.masks)

    def settled(self, step: int, total: int) -> bool:
        """Once the schedule is through."""
        return not self._targets or step >= self._last(total)

    def state(self) -> dict[str, Tensor]:
        """The masks."""
        return dict(self.masks)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes the masks back."""
        self.masks = dict(state)

    def metrics(self) -> dict[str, float]:
        """How many weights are masked, of how many."""
        sizes = sum(mask.numel() for mask in self.masks.values())
        masked = count_masked(self.masks)
        return {"pruned_weights": float(masked), "sparsity": masked / sizes} if sizes else {}

    def _last(self, total: int) -> int:
        """The step that prunes last; never after the last step."""
        return min(total - 1, max(0, round(self._options.prune_end * total) - 1))


def cubic_sparsity(final: float, share: float) -> float:
    """The sparsity when ``share`` of the schedule is through."""
    return final * (1 - (1 - min(1.0, max(0.0, share))) ** 3)


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor], sparsity: float, *, scope: Literal["layer", "global"] = "layer"
) -> dict[str, Tensor]:
    """Masks that drop the ``sparsity`` share of smallest weights, of each tensor or of all together.

    Exactly ``round(sparsity · n)`` are dropped; among equals the first ones.
    """
    if scope == "layer":
        return {name: _largest(value.abs().flatten(), sparsity).view(value.shape) for name, value in weights.items()}
    flat = torch.cat([value.abs().flatten() for value in weights.values()]) if weights else torch.zeros(0)
    parts = torch.split(_largest(flat, sparsity), [value.numel() for value in weights.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(weights.items(), parts, strict=True)}


def prunable_weights(
    module: nn.Module, patterns: tuple[str, ...], *, embeddings: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Names of the weights of linear and convolutional layers (or embeddings), and why others are left alone.

    A weight that two layers share goes by the name of the first, and is an embedding's where one of them is.
    """
    kinds = nn.Embedding if embeddings else (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found: list[str] = []
    skipped: dict[str, str] = {}
    tables = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    for name, layer in module.named_modules():
        for key, value in layer.named_parameters(recurse=False):
            parameter = f"{name}.{key}" if name else key
            if value.dim() < 2 or not isinstance(layer, kinds) or key != "weight":
                if value.dim() >= 2 and not embeddings:
                    skipped[parameter] = f"a {type(layer).__name__}, no linear or convolutional layer"
            elif id(value) in tables and not embeddings:
                skipped[parameter] = "an embedding's table, too"
            elif not any(fnmatch.fnmatchcase(parameter, pattern) for pattern in patterns):
                skipped[parameter] = "not among the recipe's patterns"
            else:
                found.append(parameter)
    return found, skipped


def _largest(values: Tensor, sparsity: float) -> Tensor:
    keep = torch.ones_like(values, dtype=torch.bool)
    count = round(sparsity * values.numel())
    if count:
        keep[torch.sort(values, stable=True).indices[:count]] = False
    return keep
