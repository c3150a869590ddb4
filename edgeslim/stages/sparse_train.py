"""Training that makes weights zero by itself, to an asked sparsity: min loss + λ ‖w‖₁ or min loss + λ ‖w‖₀.

``l1`` takes a proximal step after each update, ``l0`` trains a hard-concrete gate a weight; both, and how λ follows the
asked sparsity, are in ``edgeslim.training.sparsity``. In both the loss, not a weight's size alone, decides what goes.
From ``prune_end`` on the masks are fixed, all later stages keep them (``edgeslim.training.masks``), and the rest of the
training makes up for what went. The loss is that of ``distill`` without weights of its own, or with ``learn`` labels
that of ``finetune``.

Zeros save bytes in the container, and no time: ONNX Runtime multiplies by them like by any other number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.training.gradual_pruning import prunable_weights
from edgeslim.training.loop import LoopOptions, train
from edgeslim.training.objectives import DistillationLoss, LabelLoss, usual_weights
from edgeslim.training.sparsity import Gates, LearnedSparsity, ProximalL1
from edgeslim.training.student import choose_layers, count_layers
from edgeslim.training.torch_model import TorchModel

__all__ = ["SparseTrain"]


@dataclass(frozen=True, kw_only=True)
class SparseTrain(LoopOptions):
    """Sparse training of the linear and convolutional weights that ``prune`` names, all counted together.

    ``prune_begin`` and ``prune_end`` are shares of all steps. ``strength`` is the first λ, from where it follows the
    sparsity. ``gate_rate`` is how much faster than weights the gates of ``l0`` are trained.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "torch"

    method: Literal["l1", "l0"] = "l1"
    sparsity: float = 0.8
    learn: Literal["teacher", "labels"] = "teacher"
    prune: tuple[str, ...] = ("*",)
    prune_begin: float = 0.0
    prune_end: float = 0.6
    strength: float = 1e-3
    gate_rate: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity}, expected more than 0 and less than 1")
        if not 0 <= self.prune_begin <= self.prune_end <= 1:
            raise ValueError(
                f"prune_begin: {self.prune_begin}, prune_end: {self.prune_end}, expected 0 to 1, the first not later"
            )
        if not self.strength > 0 or not self.gate_rate > 0:
            raise ValueError(f"strength: {self.strength}, gate_rate: {self.gate_rate}, expected more than 0")

    def run(self, model: TorchModel, ctx: Context) -> StepResult[TorchModel]:
        """Trains ``model`` in place.

        Raises:
            BadInputError: there are no training data, no labels where they are asked for, or no weights to prune.
        """
        names, skipped = prunable_weights(model.module, self.prune)
        if not names:
            raise BadInputError(
                "recipe: sparse_train", f"prune = {list(self.prune)} names no weight", expected="linear layers or Convs"
            )
        settings: dict[str, Any] = {
            "sparsity": self.sparsity,
            "begin": self.prune_begin,
            "end": self.prune_end,
            "strength": self.strength,
        }
        objective = self._objective(model, ctx)
        hook: LearnedSparsity
        if self.method == "l0":
            hook = gates = Gates(model.module, names, model.masks, **settings)
            objective = GatedLoss(objective, gates, self.gate_rate)
            with gates.gated(model.module):
                trained = train(objective, model.module, self, ctx, hooks=[gates])
        else:
            hook = ProximalL1(names, model.masks, **settings)
            trained = train(objective, model.module, self, ctx, hooks=[hook])
        return StepResult(
            model=replace(model, masks=hook.masks),
            changed=len(names),
            skipped=skipped,
            metrics={**trained.metrics(), **hook.metrics()},
        )

    def _objective(self, model: TorchModel, ctx: Context) -> nn.Module:
        if self.learn == "labels":
            if ctx.training is not None and not ctx.training.labelled():
                raise BadInputError("recipe: sparse_train", 'learn = "labels", and no labels', expected="labels")
            return LabelLoss(model)
        mine, theirs = count_layers(model.module), count_layers(ctx.teacher.module)
        layers = choose_layers(mine, theirs) if mine else ()
        weights = usual_weights(ctx.task.manifest(), layered=bool(layers))
        pooling: Any = ctx.task.manifest().get("pooling", "none")
        return DistillationLoss(model, ctx.teacher, weights, layers=layers, pooling=pooling, seed=ctx.seed)


class GatedLoss(nn.Module):
    """The loss of a model whose weights have gates, which are trained along."""

    def __init__(self, loss: nn.Module, gates: Gates, rate: float) -> None:
        super().__init__()
        self.loss, self.gates = loss, gates
        self.rates = {f"gates.{name}": rate for name, _ in gates.named_parameters()}

    def forward(self, inputs: dict[str, Tensor], labels: Tensor | None) -> Tensor:
        """A loss for each sample."""
        result: Tensor = self.loss(inputs, labels)
        return result
