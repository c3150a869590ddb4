"""What calibration samples say of a torch module's layers: second moments of inputs, gradients, what units are worth.

Gradients are those of the task's answer, projected at random (``edgeslim.quantizing.answer_gradients``), or of the
cross entropy where the samples have labels. For unit u of a layer whose inputs are x and their gradients g:

* ``taylor``: mean over samples of |Σ x·g|, sums over the unit's channels and a sample's tokens: what the answer changes
  to first order without the unit (Molchanov et al. 2017, arXiv 1611.06440; Michel et al. 2019, arXiv 1905.10650).
* ``fisher``: the mean of ½ (Σ x·g)² (Theis et al. 2018, arXiv 1801.05787).

Tokens that are padding count nowhere. Layout: moments [in, in], outputs' gradients [out, out].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeslim.core import Batch, Context
from edgeslim.errors import BadInputError
from edgeslim.quantizing.answer_gradients import task_objective
from edgeslim.quantizing.moments import Moments
from edgeslim.training.batching import collate
from edgeslim.training.objectives import label_loss
from edgeslim.training.torch_model import TorchModel
from edgeslim.training.unit_groups import Part

__all__ = ["UnitStatistics", "block_influence", "measure_gradients", "measure_moments"]

RUN = 16
RUN_TOKENS = 1024
"""Of running text: the logits of many words take much memory."""
MAX_PLACES = 256
"""Of the places under a convolution's kernel, so many a sample count, evenly spaced."""

Array = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class UnitStatistics:
    """By the name of a part: ``outputs`` the mean of the gradients' g gᵀ, ``taylor`` and ``fisher`` of its units."""

    outputs: dict[str, Array] = field(default_factory=dict)
    taylor: dict[str, Array] = field(default_factory=dict)
    fisher: dict[str, Array] = field(default_factory=dict)


@torch.no_grad()
def measure_moments(model: TorchModel, names: Sequence[str], ctx: Context) -> dict[str, Moments]:
    """The moments of the inputs of the layers ``names``; a convolution's are the patches under its kernel.

    Raises:
        BadInputError: there are no samples, or a value isn't finite.
    """
    sums: dict[str, Moments] = {}
    mask: list[Tensor | None] = [None]

    def listen(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = _rows(layer, inputs[0], mask[0])
            if not bool(torch.isfinite(rows).all()):
                raise BadInputError(f"calibration: {name}", "a NaN or infinite value", expected="finite activations")
            second = (rows.T @ rows).double().numpy()
            total, count = rows.sum(0, dtype=torch.float64).numpy(), len(rows)
            known = sums.get(name)
            if known is not None:
                second, total, count = known.second + second, known.total + total, known.count + count
            sums[name] = Moments(second=second, total=total, count=count)

        return layer.register_forward_pre_hook(hook)

    with _hooks(model.module, names, listen):
        for inputs, _ in _runs(ctx.calibration, ctx, "second moments"):
            mask[0] = inputs.get("attention_mask")
            model.module(**model.take(inputs))
    return sums


def measure_gradients(
    model: TorchModel, parts: Sequence[Part], batches: Sequence[Batch], ctx: Context
) -> UnitStatistics:
    """Gradients of the layers' outputs, and what each of their units is worth.

    Raises:
        BadInputError: there are no samples, or a gradient isn't finite.
    """
    found = UnitStatistics()
    objective = task_objective(ctx.task)
    generator = torch.Generator().manual_seed(ctx.seed)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    samples, tokens = 0, dict.fromkeys([part.name for part in parts], 0)

    def listen(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return layer.register_forward_hook(hook)

    with _hooks(model.module, list(tokens), listen), torch.enable_grad():
        for inputs, labels in _runs(batches, ctx, "gradients"):
            seen.clear()
            out = model.pick(model.module(**_floating(model.take(inputs))))
            if labels is not None:
                scalar = label_loss(out, labels).sum()
            else:
                feed: Any = {name: value.detach().numpy() for name, value in inputs.items()}
                answer = out if objective is None else objective({model.output or "output": out}, feed)
                scalar = (answer * torch.randn(answer.shape, generator=generator)).sum()
            flat = [tensor for part in parts for tensor in seen.get(part.name, ())]
            gradients = iter(torch.autograd.grad(scalar, flat, allow_unused=True, materialize_grads=True))
            mask = inputs.get("attention_mask")
            samples += len(out)
            for part in parts:
                if part.name in seen:
                    tokens[part.name] += _add(found, part, seen[part.name], (next(gradients), next(gradients)), mask)
    for part in parts:
        for table, count in ((found.taylor, samples), (found.fisher, samples), (found.outputs, tokens[part.name])):
            if part.name in table:
                table[part.name] = table[part.name] / max(count, 1)
    for name, values in found.outputs.items():
        if not np.isfinite(values).all():
            raise BadInputError(f"calibration: gradient of {name}", "a NaN or infinite value", expected="finite ones")
    return found


@torch.no_grad()
def block_influence(model: TorchModel, names: Sequence[str], ctx: Context) -> dict[str, float]:
    """1 - the mean cosine of what enters and what leaves each block (ShortGPT, Men et al. 2024, arXiv 2403.03853)."""
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    mask: list[Tensor | None] = [None]

    def listen(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = arguments[0] if arguments else named["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            left, right = (_rows(nn.Identity(), value, mask[0]) for value in (before, after))
            cosine = functional.cosine_similarity(left, right, dim=1)
            sums[name] += float((1 - cosine).sum())
            counts[name] += len(cosine)

        return layer.register_forward_hook(hook, with_kwargs=True)

    with _hooks(model.module, names, listen):
        for inputs, _ in _runs(ctx.calibration, ctx, "blocks"):
            mask[0] = inputs.get("attention_mask")
            model.module(**model.take(inputs))
    return {name: sums[name] / max(counts[name], 1) for name in names}


def _add(
    found: UnitStatistics,
    part: Part,
    values: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> int:
    """Adds one run's sums; returns the number of rows."""
    product = (values[0] * gradients[0]).detach()
    if mask is not None and product.shape[:2] == mask.shape:
        product = product * mask[..., None]
    flat_rows = product.flatten(2).transpose(1, 2) if product.dim() == 4 else product
    rows = flat_rows.reshape(len(product), -1, flat_rows.shape[-1]).sum(1)
    index = torch.from_numpy(part.units[:, :: part.places] // part.places)
    units = rows[:, index].sum(2).double()
    for table, worth in ((found.taylor, units.abs()), (found.fisher, 0.5 * units.square())):
        table[part.name] = table.get(part.name, np.zeros(len(part.units))) + worth.sum(0).numpy()
    outer = gradients[1].movedim(1, -1) if gradients[1].dim() == 4 else gradients[1]
    flat = outer.reshape(-1, outer.shape[-1])
    if mask is not None and outer.shape[:2] == mask.shape:
        flat = outer[mask.bool()]
    moment = (flat.T @ flat).double().numpy()
    found.outputs[part.name] = found.outputs.get(part.name, np.zeros_like(moment)) + moment
    return len(flat)


def _rows(layer: nn.Module, values: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that a layer's matrix is multiplied with, float32 [rows, in]."""
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding
        if isinstance(padding, str):
            total = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
            half = [(one // 2, one - one // 2) if padding == "same" else (0, 0) for one in total]
            values, padding = functional.pad(values, (*half[1], *half[0])), 0
        patches = functional.unfold(
            values, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
        )
        step = math.ceil(patches.shape[2] / MAX_PLACES)
        return patches[:, :, ::step].transpose(1, 2).reshape(-1, patches.shape[1]).float()
    if mask is not None and values.shape[:2] == mask.shape:
        return values[mask.bool()].float()
    return values.reshape(-1, values.shape[-1]).float()


def _floating(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs that gradients flow to, so that frozen weights make no difference."""
    return {name: value.requires_grad_() if value.is_floating_point() else value for name, value in inputs.items()}


def _runs(batches: Sequence[Batch], ctx: Context, what: str) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """Samples of similar length together, where a mask tells what is padding; others of one shape."""
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    ordered = sorted(batches, key=lambda batch: [value.shape[1:] for _, value in sorted(batch.feed.items())])
    runs: list[list[Batch]] = []
    for batch in ordered:
        last = runs[-1] if runs else []
        alike = last and all(value.shape[1:] == last[-1].feed[name].shape[1:] for name, value in batch.feed.items())
        most = RUN if "attention_mask" in batch.feed or "input_ids" not in batch.feed else _most_windows(batch)
        if 0 < len(last) < most and ("attention_mask" in batch.feed or alike):
            last.append(batch)
        else:
            runs.append([batch])
    for run in ctx.progress.track(runs, what, len(runs)):
        yield collate(run, {})


def _most_windows(batch: Batch) -> int:
    return min(RUN, max(1, RUN_TOKENS // int(batch.feed["input_ids"].shape[1])))


@contextmanager
def _hooks(module: nn.Module, names: Sequence[str], listen: Any) -> Iterator[None]:
    handles = [listen(name, module.get_submodule(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
