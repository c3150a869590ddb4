"""A decoder trained on while its matrices compute as their grids will have them.

Once a step is chosen for every channel and every weight is rounded, the model of rounded matrices learns to say what
the float one says: soft labels (Hinton et al. 2015, arXiv 1503.02531), for a word's whole distribution tells more than
the word (LLM-QAT: Liu et al. 2023, arXiv 2305.17888), and hidden states. Integers move, and with them the vectors of
the norms, which are float in the file anyway; steps stay, and so do the integers' magnitudes on the whole, so that a
file takes the bytes that it took before (``edgeslim.training.grid_latents``). Tables stay as they were rounded: most of
their rows come up in no training text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeslim.algorithms.allocation import Rounded
from edgeslim.algorithms.rate import LEVELS
from edgeslim.core import Context, TrainingData
from edgeslim.decoders.checkpoint import ArrayCheckpoint, Checkpoint
from edgeslim.decoders.torch_decoder import make_module
from edgeslim.errors import BadInputError
from edgeslim.quantizing.grid_training import GridTrainingOptions, refuse_processes
from edgeslim.training.grid_latents import VECTOR_RATE, KeepSmall, Latents, first_latent, round_latent
from edgeslim.training.loop import mean_loss, train
from edgeslim.training.objectives import DistillationLoss, DistillationWeights
from edgeslim.training.torch_model import TorchModel

__all__ = ["TrainedDecoder", "train_grids"]

VALIDATED = 16
"""So many windows decide which weights are kept."""


@dataclass(frozen=True, kw_only=True)
class TrainedDecoder:
    """``matrices`` by their paths, and a ``checkpoint`` with the norms' vectors as they are now."""

    matrices: Mapping[str, Rounded]
    checkpoint: Checkpoint
    metrics: Mapping[str, float]


def train_grids(
    checkpoint: Checkpoint, grids: Mapping[str, Rounded], options: GridTrainingOptions, context: Context
) -> TrainedDecoder:
    """Trains the matrices ``grids`` of ``checkpoint``, which is left as it is; nothing is learned that loses more.

    Raises:
        BadInputError: there are no training data, or several processes share the build.
    """
    refuse_processes("quantize_decoder")
    if context.training is None:
        raise BadInputError(
            "data", "no training data", expected="running text to train on", hint='[data] training = "text.txt"'
        )
    student = GridDecoder(make_module(checkpoint), grids)
    teacher = TorchModel(module=make_module(checkpoint), output="logits").frozen()
    weights = DistillationWeights(soft=1.0, temperature=1.0, hidden=options.distill_hidden)
    loss = _Loss(student, teacher, weights, range(checkpoint.shape.layers))
    loop, data = options.loop_options(), _few(context.training)
    first = mean_loss(loss, data, loop)
    found = train(loss, student, loop, replace(context, training=data, device="cpu"), hooks=[KeepSmall(student)])
    best = found.validation[found.best_step]
    metrics = {**found.metrics(), "distill_loss_before": first, "distill_loss": min(first, best)}
    if not best < first:
        return TrainedDecoder(matrices={}, checkpoint=checkpoint, metrics=metrics)
    return TrainedDecoder(
        matrices={path: replace(grids[path], values=values) for path, values in student.trained_values().items()},
        checkpoint=student.with_vectors(checkpoint),
        metrics=metrics,
    )


class GridDecoder(Latents):
    """``module``, a ``LlamaForCausalLM`` that is changed, with the matrices ``grids`` on them."""

    def __init__(self, module: Any, grids: Mapping[str, Rounded]) -> None:
        super().__init__()
        self.module = module.requires_grad_(requires_grad=False)
        self._matrices: dict[str, parametrize.ParametrizationList] = {}
        for path, grid in grids.items():
            layer = module.get_submodule(path)
            if not isinstance(layer, nn.Linear):  # a table, and its other use
                with torch.no_grad():
                    layer.weight.copy_(torch.from_numpy((grid.values * grid.steps).T))
                continue
            steps = np.ascontiguousarray(grid.steps[:, None], np.float32)
            latent = first_latent(layer.weight.numpy(), grid.values.T, steps)
            self._matrices[path] = _replace(layer, _OnGrid(torch.from_numpy(steps)), latent)
        norms = {path: norm for path, norm in module.named_modules() if path.endswith("norm")}
        self._vectors = {
            path: _replace(norm, _Moved(norm.weight.detach()), torch.zeros_like(norm.weight))
            for path, norm in norms.items()
        }

    def all_latents(self) -> list[Tensor]:
        """The matrices that are trained, in steps."""
        return [matrix.original for matrix in self._matrices.values()]

    def rates(self, prefix: str) -> dict[str, float]:
        """How fast the vectors learn, by the names of their parameters behind ``prefix``."""
        return {f"{prefix}{path}.parametrizations.weight.original": VECTOR_RATE for path in self._vectors}

    def trained_values(self) -> dict[str, npt.NDArray[np.int8]]:
        """The integers of the matrices that were trained, [in, out]."""
        return {
            path: torch.round(matrix.original.detach()).clamp_(-LEVELS, LEVELS).to(torch.int8).T.contiguous().numpy()
            for path, matrix in self._matrices.items()
        }

    def with_vectors(self, checkpoint: Checkpoint) -> Checkpoint:
        """``checkpoint`` with the norms' vectors of now."""
        moved = {f"{path}.weight": vector().detach().numpy() for path, vector in self._vectors.items()}
        names = checkpoint.shape.tensor_shapes()
        return ArrayCheckpoint({name: _reader(checkpoint, name, moved.get(name)) for name in names}, checkpoint.shape)


class _Loss(DistillationLoss):
    """The distillation's loss, of which vectors learn at a rate of their own."""

    def __init__(self, student: GridDecoder, teacher: TorchModel, weights: DistillationWeights, layers: range) -> None:
        super().__init__(TorchModel(module=student.module, output="logits"), teacher, weights, layers=layers)
        self.rates = student.rates("student.")


class _OnGrid(nn.Module):
    """A matrix from latent weights."""

    def __init__(self, steps: Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", steps, persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        """The nearest integers, times the steps."""
        return round_latent(latent, self.steps)  # type: ignore[no-any-return]


class _Moved(nn.Module):
    """A vector from how far it has moved, in its root mean square."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.clone(), persistent=False)

    def forward(self, offset: Tensor) -> Tensor:
        """The vector where it is now."""
        start: Any = self.start
        return start + offset * start.square().mean().sqrt()  # type: ignore[no-any-return]


def _replace(layer: Any, form: nn.Module, start: Tensor) -> parametrize.ParametrizationList:
    """Makes ``layer.weight`` what ``form`` makes of a parameter that begins as ``start``."""
    parametrize.register_parametrization(layer, "weight", form, unsafe=True)
    made: parametrize.ParametrizationList = layer.parametrizations.weight
    made.original = nn.Parameter(start)
    return made


def _few(data: TrainingData) -> TrainingData:
    """``data`` with at most ``VALIDATED`` windows that validate, from all over the text."""
    count = len(data.validation)
    chosen = np.unique(np.linspace(0, count - 1, min(VALIDATED, count)).astype(np.intp))
    return replace(data, validation=tuple(data.validation[index] for index in chosen))


def _reader(checkpoint: Checkpoint, name: str, moved: npt.NDArray[np.float32] | None) -> Any:
    return lambda: checkpoint.read(name) if moved is None else moved
