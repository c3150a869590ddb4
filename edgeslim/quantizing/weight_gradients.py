"""What the model's answer, or the loss of labelled samples, says of weights: gradients by weights and layers' outputs.

One backward pass a calibration sample (``edgeslim.torch_graph``). Samples with labels give the gradient of their cross
entropy. Others give that of a random projection of what the task compares (``edgeslim.quantizing.answer_gradients``).
Its squares are, in the mean, the diagonal of the Gauss-Newton matrix: the Fisher information of the float model's own
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Batch, Context, Feed
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import Weight
from edgeslim.quantizing.answer_gradients import task_objective
from edgeslim.torch_graph import Objective, TorchGraph, output_gradients

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["output_moments", "weight_fisher", "weight_importance"]

Array = npt.NDArray[np.float64]


def weight_importance(
    model: ir.Model, weights: Sequence[Weight], ctx: Context, kind: Literal["gradient", "fisher"], *, samples: int
) -> dict[str, Array]:
    """An importance for each weight, by name and in the stored shape, means over at most ``samples`` batches.

    ``gradient``: |w·g|, what the loss changes to first order if w is removed (Molchanov et al. 2017, arXiv 1611.06440).
    ``fisher``: ½ w² g², the same to second order at a minimum (LeCun et al. 1989; Theis et al. 2018, arXiv 1801.05787).

    Raises:
        BadInputError: there is no calibration data, or an operator without a gradient.
    """
    found = {weight.name: np.zeros(weight.array.shape) for weight in weights}
    count = 0
    for gradients in _gradients(model, [weight.name for weight in weights], ctx, samples):
        count += 1
        for weight in weights:
            product = gradients[weight.name].astype(np.float64) * weight.array
            found[weight.name] += np.abs(product) if kind == "gradient" else 0.5 * np.square(product)
    return {name: total / count for name, total in found.items()}


def weight_fisher(model: ir.Model, weights: Sequence[Weight], ctx: Context, *, samples: int) -> dict[str, Array]:
    """The mean of g² for each weight, by name and in the stored shape.

    Raises:
        BadInputError: as ``weight_importance``.
    """
    found = {weight.name: np.zeros(weight.array.shape) for weight in weights}
    count = 0
    for gradients in _gradients(model, [weight.name for weight in weights], ctx, samples):
        count += 1
        for name, total in found.items():
            total += np.square(gradients[name].astype(np.float64))
    return {name: total / count for name, total in found.items()}


def output_moments(
    model: ir.Model, weights: Sequence[Weight], ctx: Context, *, samples: int, probes: int = 1
) -> dict[str, Array]:
    """The mean of g gᵀ over the rows of each weight's outputs, float64 [out, out], by the weight's name.

    ``probes`` random projections of each sample's answer cost less than as many samples.

    Raises:
        BadInputError: as ``weight_importance``.
    """
    names = {weight.name: [use.node.outputs[0].name or "" for use in weight.uses] for weight in weights}
    sums: dict[str, Array] = {}
    rows: dict[str, int] = dict.fromkeys(names, 0)
    every = list(dict.fromkeys(name for group in names.values() for name in group))
    for gradients in _gradients(model, every, ctx, samples, probes):
        for weight in weights:
            for name in names[weight.name]:
                gradient = gradients[name]
                if weight.uses[0].kind == "Conv":
                    gradient = np.moveaxis(gradient, 1, -1)
                flat = gradient.reshape(-1, gradient.shape[-1])
                product = (flat.T @ flat).astype(np.float64)
                sums[weight.name] = sums[weight.name] + product if weight.name in sums else product
                rows[weight.name] += len(flat)
    return {name: total / max(rows[name], 1) for name, total in sums.items()}


def _gradients(
    model: ir.Model, names: Sequence[str], ctx: Context, samples: int, probes: int = 1
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    if not ctx.calibration:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    graph = TorchGraph(model)
    plain = task_objective(ctx.task)
    for number, batch in enumerate(ctx.progress.track(ctx.calibration[:samples], "gradients")):
        objective = _label_loss(batch) if batch.labels else plain
        yield from output_gradients(
            graph, [batch.feed], names, objective=objective, probes=probes, seed=ctx.seed + number
        )


def _label_loss(batch: Batch) -> Objective:
    """The cross entropy of each of the batch's samples."""

    def loss(outputs: Mapping[str, Tensor], feed: Feed) -> Tensor:  # noqa: ARG001
        import torch

        logits = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
        return torch.nn.functional.cross_entropy(logits, torch.tensor(batch.labels), reduction="none")

    return loss
