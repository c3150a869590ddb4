"""Linear layers of a torch model as two thin ones: which can be, what calibration says of them, and the exchange.

What is measured is what ``edgeslim.quantizing`` measures on a graph: second moments of inputs, those of the gradients
of outputs, and the Fisher information of weights, here without tokens that are padding.

Layout: matrices [in, out], as graphs have them; ``nn.Linear`` stores [out, in].
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeslim.core import Context
from edgeslim.errors import BadInputError
from edgeslim.quantizing.answer_gradients import task_objective
from edgeslim.training.batching import collate
from edgeslim.training.objectives import label_loss
from edgeslim.training.torch_model import LowRankLinear, TorchModel, factor_linear
from edgeslim.training.unit_groups import Part
from edgeslim.training.unit_statistics import measure_gradients, measure_moments

__all__ = ["divide_linears", "find_linears", "linear_fisher", "linear_input_moments", "linear_output_moments"]

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the weights of the linear layers inside them, and don't call these."""


def find_linears(
    model: TorchModel, skipped: dict[str, str], *, min_elements: int, keep: Sequence[str]
) -> dict[str, Matrix]:
    """The matrices of the linear layers that can be divided, by the layer's name; why others can't is in ``skipped``.

    ``keep`` are patterns (``*`` allowed) of names of layers or of their weights, which stay whole.
    """
    layers = dict(model.module.named_modules())
    uses = Counter(id(value) for layer in layers.values() for value in layer._parameters.values())
    found = {}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            continue
        parents = [layers[name[:end]] for end, sign in enumerate(name) if sign == "."] + [model.module]
        reader = next((parent for parent in parents if isinstance(parent, READERS)), None)
        if any(fnmatch.fnmatchcase(one, pattern) for one in (name, f"{name}.weight") for pattern in keep):
            skipped[name] = "kept by the recipe"
        elif any(isinstance(parent, LowRankLinear) for parent in parents):
            skipped[name] = "an earlier step divided it"
        elif reader is not None or type(layer) is not nn.Linear:
            skipped[name] = (
                f"a {type(layer).__name__} inside a {type(reader or layer).__name__}, which reads its weight"
            )
        elif uses[id(layer.weight)] > 1:
            skipped[name] = "its weight is another layer's, too"
        elif layer.weight.numel() < min_elements:
            skipped[name] = f"it has {layer.weight.numel()} elements, fewer than min_elements = {min_elements}"
        else:
            found[name] = np.ascontiguousarray(layer.weight.detach().float().cpu().numpy().T)
    return found


def linear_input_moments(model: TorchModel, names: Sequence[str], ctx: Context) -> dict[str, Array]:
    """Σ x xᵀ of the inputs of the layers ``names``, [in, in]; a layer that calibration never reaches is left out.

    Raises:
        BadInputError: there are no samples, or a value isn't finite.
    """
    return {name: found.second for name, found in measure_moments(model, names, ctx).items()}


def linear_output_moments(
    model: TorchModel, matrices: Mapping[str, Matrix], ctx: Context, *, samples: int, probes: int
) -> dict[str, Array]:
    """The mean of g gᵀ over tokens, [out, out], g the gradient of the answer by a layer's outputs.

    ``probes`` random projections of each sample's answer cost less than as many samples; the loss of a sample with a
    label needs none.

    Raises:
        BadInputError: there are no samples, or a gradient isn't finite.
    """
    parts = [Part(name=name, units=np.arange(len(matrix))[:, None]) for name, matrix in matrices.items()]
    batches = ctx.calibration[:samples]
    rounds = 1 if any(batch.labels for batch in batches) else probes
    sums: dict[str, Array] = {}
    for probe in range(rounds):
        found = measure_gradients(model, parts, batches, replace(ctx, seed=ctx.seed + probe)).outputs
        sums = {name: sums.get(name, 0.0) + moment / rounds for name, moment in found.items()}
    return sums


def linear_fisher(model: TorchModel, names: Sequence[str], ctx: Context, *, samples: int) -> dict[str, Array]:
    """The mean of g², summed over a layer's outputs: [in], g the gradient of the answer by a weight.

    Raises:
        BadInputError: there are no samples.
    """
    if not ctx.calibration:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    weights = [model.module.get_parameter(f"{name}.weight") for name in names]
    asked = [weight.requires_grad for weight in weights]
    objective = task_objective(ctx.task)
    generator = torch.Generator().manual_seed(ctx.seed)
    sums = {name: np.zeros(weight.shape[1]) for name, weight in zip(names, weights, strict=True)}
    batches = ctx.calibration[:samples]
    for weight in weights:
        weight.requires_grad_()
    for batch in ctx.progress.track(batches, "gradients", len(batches)):
        inputs, labels = collate([batch], {})
        with torch.enable_grad():
            out = model.pick(model.module(**model.take(inputs)))
            answer = out if objective is None else objective({model.output or "output": out}, batch.feed)
            scalar = (
                (answer * torch.randn(answer.shape, generator=generator)).sum()
                if labels is None
                else label_loss(out, labels).sum()
            )
            gradients = torch.autograd.grad(scalar, weights, allow_unused=True, materialize_grads=True)
        for name, gradient in zip(names, gradients, strict=True):
            sums[name] += gradient.double().square().sum(0).numpy() / len(batches)
    for weight, before in zip(weights, asked, strict=True):
        weight.requires_grad_(before)
    return sums


@torch.no_grad()
def divide_linears(model: TorchModel, factors: Mapping[str, tuple[Matrix, Matrix]]) -> TorchModel:
    """``model`` with the layers of ``factors`` divided in place: left [in, rank] and right [rank, out] by name."""
    ranks = {}
    for name, (left, right) in factors.items():
        old = model.module.get_submodule(name)
        assert isinstance(old, nn.Linear)
        ranks[name] = left.shape[1]
        first, second = factor_linear(model.module, name, ranks[name]).to(old.weight.device, old.weight.dtype)
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        first.weight.copy_(torch.from_numpy(left.T.copy()))
        second.weight.copy_(torch.from_numpy(right.T.copy()))
        if old.bias is not None:
            second.bias.copy_(old.bias)
    return replace(model, factors={**model.factors, **ranks})
