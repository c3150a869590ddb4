"""Trains on with the labels of the training data: cross entropy, no teacher.

What earlier steps did stays: pruned weights stay zero (``edgeslim.training.masks``), factorized layers stay two. The
loop and its settings are those of ``edgeslim.training.loop``; what can run inside it is pruning by a schedule
(``sparsity``, ``edgeslim.training.gradual_pruning``), weights that share few values (``cluster_bits``,
``edgeslim.training.weight_sharing``), and simulated quantization (``simulate``, ``edgeslim.training.simulation``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.training.gradual_pruning import PruningOptions
from edgeslim.training.loop import LoopOptions, train
from edgeslim.training.objectives import LabelLoss
from edgeslim.training.simulation import SimulationOptions, simulate_quantization
from edgeslim.training.torch_model import TorchModel
from edgeslim.training.weight_sharing import SharingOptions

__all__ = ["Finetune"]


@dataclass(frozen=True, kw_only=True)
class Finetune(LoopOptions, PruningOptions, SharingOptions, SimulationOptions):
    """Fine-tuning on labels, with the settings of the loop, of pruning inside it and of simulated quantization."""

    level: ClassVar[Literal["torch", "graph", "either"]] = "torch"

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)
        PruningOptions.__post_init__(self)
        SharingOptions.__post_init__(self)

    def run(self, model: TorchModel, ctx: Context) -> StepResult[TorchModel]:
        """Trains ``model`` in place.

        Raises:
            BadInputError: there are no training data, or they have no labels.
        """
        if ctx.training is not None and not ctx.training.labelled():
            raise BadInputError(
                "recipe: finetune",
                "training data without labels",
                expected="a label for each sample",
                hint="distill learns from the original's own outputs and needs none",
            )
        hook, skipped = self.pruning_hook(model)
        sharing = self.sharing_hooks(model)
        with simulate_quantization(model.module, self):
            trained = train(LabelLoss(model), model.module, self, ctx, hooks=[hook, *sharing])
        return StepResult(
            model=replace(model, masks=hook.masks),
            changed=sum(1 for _ in model.module.parameters()),
            skipped=skipped,
            metrics={
                **trained.metrics(),
                **hook.metrics(),
                **{key: value for one in sharing for key, value in one.metrics().items()},
            },
        )
