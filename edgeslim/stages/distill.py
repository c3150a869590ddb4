"""Trains a student to say what the float original says; labels aren't needed.

The teacher is always the original, frozen. The student is the model as earlier steps left it (pruned weights stay zero,
factorized layers stay two), or a smaller one made of it: ``student_layers`` takes some of its layers, ``student`` is a
table of other sizes for its config (``edgeslim.training.student``). How the two are compared is in
``edgeslim.training.objectives``; a weight of 0 leaves a part out, and what none of the recipe's weights names is chosen
by the task: soft labels for a classifier, embeddings for an encoder, both with hidden states where the model has
layers.

Inside the training run, if asked for, pruning by a schedule (``edgeslim.training.gradual_pruning``), weights that share
few values (``cluster_bits``, ``edgeslim.training.weight_sharing``), and simulated quantization
(``edgeslim.training.simulation``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.training.gradual_pruning import PruningOptions
from edgeslim.training.loop import LoopOptions, train
from edgeslim.training.objectives import DistillationLoss, DistillationWeights, usual_weights
from edgeslim.training.simulation import SimulationOptions, simulate_quantization
from edgeslim.training.student import choose_layers, count_layers, shrink
from edgeslim.training.torch_model import TorchModel
from edgeslim.training.weight_sharing import SharingOptions

__all__ = ["Distill"]


@dataclass(frozen=True, kw_only=True)
class Distill(LoopOptions, PruningOptions, SharingOptions, SimulationOptions):
    """Distillation from the float original.

    ``student_layers`` is a number of layers, evenly spread, or a list of the original's layers, from 0. ``soft``,
    ``logits``, ``labels``, ``embeddings``, ``hidden`` and ``attention`` are the weights of the parts of the loss; the
    first and fourth and fifth are chosen by the task where the recipe gives no weight at all.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "torch"

    student_layers: int | tuple[int, ...] | None = None
    student: Mapping[str, Any] = field(default_factory=dict)
    soft: float | None = None
    temperature: float = 2.0
    logits: float | None = None
    labels: float | None = None
    embeddings: float | None = None
    hidden: float | None = None
    attention: float | None = None

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)
        PruningOptions.__post_init__(self)
        SharingOptions.__post_init__(self)
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature}, expected more than 0")
        given = [getattr(self, name) for name in ("soft", "logits", "labels", "embeddings", "hidden", "attention")]
        if any(value is not None and not value >= 0 for value in given):
            raise ValueError("a negative weight, expected 0 or more for each part of the loss")
        if any(value is not None for value in given) and not any(given):
            raise ValueError("no part of the loss has a weight, expected one or more above 0")

    def run(self, model: TorchModel, ctx: Context) -> StepResult[TorchModel]:
        """Trains the student.

        Raises:
            BadInputError: there are no training data, a student can't be made of this model, or the loss wants labels
                or layers that aren't there.
        """
        teacher: TorchModel = ctx.teacher
        available = count_layers(model.module)
        layers = choose_layers(self.student_layers, available) if available else ()
        if self.student_layers is not None or self.student:
            model = shrink(model, layers, self.student, ctx.seed)
        layers = model.layers or layers  # an earlier step may have taken layers out, too
        weights = self._weights(ctx, layered=bool(layers))
        if weights.labels and ctx.training is not None and not ctx.training.labelled():
            raise BadInputError("recipe: distill", "labels = …, and training data without labels", expected="labels")
        pooling = ctx.task.manifest().get("pooling", "none")
        objective = DistillationLoss(model, teacher, weights, layers=layers, pooling=_pooling(pooling), seed=ctx.seed)
        hook, skipped = self.pruning_hook(model)
        sharing = self.sharing_hooks(model)
        with simulate_quantization(model.module, self):
            trained = train(objective, model.module, self, ctx, hooks=[hook, *sharing])
        sizes = [sum(item.numel() for item in one.module.parameters()) for one in (model, teacher)]
        metrics = {"student_parameters": float(sizes[0]), "teacher_parameters": float(sizes[1])}
        return StepResult(
            model=replace(model, masks=hook.masks),
            changed=sum(1 for _ in model.module.parameters()),
            skipped=skipped,
            metrics={
                **metrics,
                **trained.metrics(),
                **hook.metrics(),
                **{key: value for one in sharing for key, value in one.metrics().items()},
            },
        )

    def _weights(self, ctx: Context, *, layered: bool) -> DistillationWeights:
        names = ("soft", "logits", "labels", "embeddings", "hidden", "attention")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given:
            return replace(usual_weights(ctx.task.manifest(), layered=layered), temperature=self.temperature)
        if (given.get("hidden") or given.get("attention")) and not layered:
            raise BadInputError(
                "recipe: distill",
                "hidden states or attention of a model whose layers aren't known",
                expected="a model of transformers",
                hint="soft, logits and embeddings compare outputs alone",
            )
        return DistillationWeights(temperature=self.temperature, **given)


def _pooling(name: object) -> Literal["mean", "cls", "none"]:
    return "mean" if name == "mean" else "cls" if name == "cls" else "none"
