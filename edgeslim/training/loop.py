"""The one training loop: AdamW on an objective, with what every stage needs and a result that a kill doesn't change.

An *objective* is a module that holds the student and gives one loss a sample. A step's loss is their mean over the
global batch, however it is cut into parts (``accumulate``) and over processes (``accelerate launch``): each process
takes every n-th sample, and its sum counts as if one process had had them all. Nothing depends on what ran before a
step: the order of the data comes from the seed and the epoch, and random numbers (dropout, gates) from the seed, the
step and the process. So a checkpoint needs no random states, and a training that goes on from one ends bit for bit as
if it had never stopped.

The learning rate warms up linearly, then falls. Biases, norms and other vectors have no weight decay. After each epoch,
or every ``validate_steps``, the loss on the validation samples decides which weights are kept, once all hooks say that
the model has its final form (a pruning schedule is through), and whether to stop early. Optimizer: Loshchilov and
Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from edgeslim.core import Batch, Context, TrainingData
from edgeslim.errors import BadInputError, CheckError
from edgeslim.training.batching import Order, collate, sample_length
from edgeslim.training.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from edgeslim.training.data import hash_training
from edgeslim.training.hooks import Hook

__all__ = ["LoopOptions", "TrainingResult", "mean_loss", "train"]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Settings of the training loop, which every stage that trains has.

    ``batch_size`` is the global one; ``accumulate`` cuts it into that many parts to save memory. ``max_steps`` ends
    earlier than ``epochs``. ``warmup`` is a share of all steps. ``patience`` stops after that many validations without
    a better one, 0 never. Without ``dropout`` nothing is dropped: what is wanted of a short distillation. ``precision``
    is that of products alone; weights and losses stay float32. A CPU that multiplies bfloat16 takes half the time so.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    validate_steps: int | None = None
    patience: int = 0
    dropout: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_size", "accumulate", "validate_steps", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}, expected at least 1")
        for name, low in (("learning_rate", True), ("max_gradient_norm", True), ("weight_decay", False)):
            value = getattr(self, name)
            if not (value > 0 if low else value >= 0) or not math.isfinite(value):
                raise ValueError(f"{name}: {value}, expected {'more than 0' if low else '0 or more'}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: {self.warmup}, expected 0 to 1")
        if self.patience < 0:
            raise ValueError(f"patience: {self.patience}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """``losses`` of all steps, and those of the validations by step; ``best_step`` is the one that was kept."""

    losses: tuple[float, ...]
    validation: Mapping[int, float]
    best_step: int
    resumed_at: int = 0

    def metrics(self) -> dict[str, float]:
        """What a step of a report says of the training."""
        tail = self.losses[-min(20, len(self.losses)) :]
        return {
            "training_steps": float(len(self.losses)),
            "first_loss": self.losses[0],
            "last_loss": sum(tail) / len(tail),
            "validation_loss": self.validation[self.best_step],
            "best_step": float(self.best_step),
        }


@dataclass(kw_only=True)
class _Progress:
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    best_step: int = -1
    stale: int = 0


def train(
    objective: nn.Module, module: nn.Module, options: LoopOptions, ctx: Context, *, hooks: Sequence[Hook] = ()
) -> TrainingResult:
    """Trains ``objective`` in place, and leaves in ``module``, which it holds, the best weights of the validations.

    ``objective(inputs, labels)`` gives a loss for each sample; ``labels`` are ``None`` where the data have none.

    Raises:
        BadInputError: there are no training data.
        CheckError: the loss isn't finite.
    """
    data = ctx.training
    if data is None:
        raise BadInputError(
            "data", "no training data", expected="a file of samples to train on", hint='[data] training = "train.jsonl"'
        )
    accelerator = Accelerator(
        cpu=ctx.device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    objective.to(accelerator.device)
    optimizer = _make_optimizer(objective, options)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    per_epoch = math.ceil(len(data.training) / options.batch_size)
    total = min(options.epochs * per_epoch, options.max_steps or options.epochs * per_epoch)
    every = options.validate_steps or per_epoch
    key = _key(objective, options, ctx, accelerator.num_processes)
    progress, best = _Progress(), None
    order = Order(data, options.batch_size, ctx.seed)
    accelerator.wait_for_everyone()  # nobody writes a checkpoint before all have read
    found = None if ctx.checkpoints is None else load_checkpoint(ctx.checkpoints, key)
    if found is not None:
        tensors, facts = found
        progress, best = _restore(tensors, facts, objective, optimizer, names, hooks)
    resumed = progress.step
    prepared = accelerator.prepare_model(objective)
    for hook in hooks:
        hook.begin(optimizer)
    accelerator.wait_for_everyone()
    _set_mode(objective, dropout=options.dropout)
    for step in ctx.progress.track(range(resumed, total), "training", total - resumed):
        rate = _set_rate(optimizer, options, step, total)
        loss = _backward(accelerator, prepared, order.batch(step), data.padding, options, hooks, (ctx.seed, step))
        if not math.isfinite(loss):
            raise CheckError("training", f"the loss of step {step + 1} is {loss}", hint="a smaller learning_rate")
        for hook in hooks:
            hook.before_update(module)
        torch.nn.utils.clip_grad_norm_(objective.parameters(), options.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.after_update(module, step, total, rate)
        progress.losses.append(loss)
        progress.step = step + 1
        if progress.step % every == 0 or progress.step == total:
            measured = _validate(accelerator, objective, data.validation, data.padding, options)
            _set_mode(objective, dropout=options.dropout)
            progress.validation[progress.step] = measured
            if all(hook.settled(step, total) for hook in hooks):
                if best is None or measured < progress.validation[progress.best_step]:
                    best = {name: value.detach().clone() for name, value in module.state_dict().items()}
                    progress.best_step, progress.stale = progress.step, 0
                else:
                    progress.stale += 1
        if options.patience and progress.stale >= options.patience:
            break
        if (
            ctx.checkpoints is not None
            and accelerator.is_main_process
            and progress.step % options.checkpoint_steps == 0
        ):
            save_checkpoint(
                ctx.checkpoints,
                progress.step,
                _checkpoint_tensors(objective, optimizer, names, hooks, best),
                {**vars(progress), "key": key},
            )
    assert best is not None, "the last step validates, and every hook has settled by then"
    module.load_state_dict(best)
    module.eval()
    accelerator.free_memory()
    return TrainingResult(
        losses=tuple(progress.losses),
        validation=progress.validation,
        best_step=progress.best_step,
        resumed_at=resumed,
    )


@torch.no_grad()
def mean_loss(objective: nn.Module, data: TrainingData, options: LoopOptions) -> float:
    """The mean loss over the validation samples, as ``train`` has it; in one process, on the CPU."""
    accelerator = Accelerator(cpu=True)
    return _validate(accelerator, objective, data.validation, data.padding, options)


def _make_optimizer(objective: nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW; an objective's ``rates`` say which of its parameters learn faster, and they have no weight decay."""
    rates: Mapping[str, float] = getattr(objective, "rates", {})
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name in rates or parameter.dim() <= 1 else options.weight_decay
            groups.setdefault((rates.get(name, 1.0), decay), []).append(parameter)
    tables = [{"params": found, "weight_decay": decay, "rate": rate} for (rate, decay), found in groups.items()]
    return torch.optim.AdamW(tables, lr=options.learning_rate, fused=True)  # a tenth of the time on a CPU


def _set_rate(optimizer: torch.optim.Optimizer, options: LoopOptions, step: int, total: int) -> float:
    """Sets the learning rate of ``step`` and returns it."""
    warm = max(1, round(options.warmup * total))
    left = (total - step) / max(1, total - warm)
    if options.warmup and step < warm:
        share = (step + 1) / warm
    elif options.schedule == "linear":
        share = min(1.0, left)
    else:
        share = 0.5 * (1 - math.cos(math.pi * min(1.0, left))) if options.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * share * group["rate"]
    return options.learning_rate * share


def _backward(
    accelerator: Accelerator,
    prepared: nn.Module,
    batch: Sequence[Batch],
    padding: Mapping[str, int],
    options: LoopOptions,
    hooks: Sequence[Hook],
    seeds: tuple[int, int],
) -> float:
    """Adds the gradients of the mean loss over ``batch``; returns that loss."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    parts = [part for part in (batch[start :: options.accumulate] for start in range(options.accumulate)) if part]
    summed = torch.zeros((), device=accelerator.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr((*seeds, rank)).encode()).digest()[:7]))
        for number, part in enumerate(parts):
            mine = part[rank::processes]
            inputs, labels = collate(mine or part[:1], padding)
            labels = None if labels is None else labels.to(accelerator.device)
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(prepared):
                with _products(accelerator, options):
                    losses = prepared(
                        _to(inputs, accelerator.device), None if labels is None else labels.to(accelerator.device)
                    )
                # A process without a sample of its own takes part all the same, with weight 0.
                loss = losses.sum() * (processes / len(batch) if mine else 0.0)
                summed += loss.detach() / processes
                extra = [hook.penalty() for hook in hooks] if last else []
                for value in extra:
                    if value is not None:
                        loss = loss + value
                        summed += value.detach() / processes
                accelerator.backward(loss)
    return float(accelerator.reduce(summed, reduction="sum"))


@torch.no_grad()
def _validate(
    accelerator: Accelerator,
    objective: nn.Module,
    samples: Sequence[Batch],
    padding: Mapping[str, int],
    options: LoopOptions,
) -> float:
    """The mean loss over ``samples``."""
    objective.eval()
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = sorted(samples, key=sample_length)[rank::processes]
    summed = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(mine), options.batch_size):
        inputs, labels = collate(mine[start : start + options.batch_size], padding)
        with _products(accelerator, options):
            summed += objective(_to(inputs, accelerator.device), labels).sum().double()
    return float(accelerator.reduce(summed, reduction="sum")) / len(samples)


def _products(accelerator: Accelerator, options: LoopOptions) -> torch.autocast:
    """Where products are made in the precision that the recipe asks for."""
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.precision == "bfloat16")


def _to(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def _set_mode(objective: nn.Module, *, dropout: bool) -> None:
    """Training mode; without ``dropout`` for batch norms alone, which learn their statistics in it."""
    objective.train(dropout)
    if not dropout:
        for module in objective.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()


def _key(objective: nn.Module, options: LoopOptions, ctx: Context, processes: int) -> str:
    """What a checkpoint must agree on: where the training starts, on what, and how."""
    digest = hashlib.sha256(repr((options, ctx.seed, processes, hash_training(ctx.training))).encode())
    for name, value in objective.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _checkpoint_tensors(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    hooks: Sequence[Hook],
    best: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    parts: Iterator[tuple[str, Mapping[str, Tensor]]] = iter(
        [
            ("model", objective.state_dict()),
            ("best", best or {}),
            *((f"hook{number}", hook.state()) for number, hook in enumerate(hooks)),
        ]
    )
    tensors = {f"{part}.{name}": value for part, table in parts for name, value in table.items()}
    return {**tensors, **optimizer_tensors(optimizer, names)}


def _restore(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    hooks: Sequence[Hook],
) -> tuple[_Progress, dict[str, Tensor] | None]:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    objective.load_state_dict(part("model."))
    restore_optimizer(optimizer, names, tensors)
    for number, hook in enumerate(hooks):
        hook.load_state(part(f"hook{number}."))
    progress = _Progress(
        step=int(facts["step"]),
        losses=[float(value) for value in facts["losses"]],
        validation={int(step): float(value) for step, value in facts["validation"].items()},
        best_step=int(facts["best_step"]),
        stale=int(facts["stale"]),
    )
    return progress, part("best.") or None
