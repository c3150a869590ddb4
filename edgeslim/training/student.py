"""A smaller student of a transformers model: fewer layers, or other sizes, begun with the teacher's weights.

A student of fewer layers takes whole layers of its teacher (as DistilBERT, Sanh et al. 2019, arXiv 1910.01108). One of
other sizes takes of each tensor the part that it has room for, the first rows and columns; what isn't in the teacher at
all stays random. Both are then distilled: by itself neither is worth much.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeslim.errors import BadInputError
from edgeslim.training.torch_model import TorchModel, build_student

__all__ = ["choose_layers", "count_layers", "layer_names", "shrink"]

LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers")


def count_layers(module: nn.Module) -> int:
    """How many layers a transformers model has; 0 where that can't be told."""
    key = _layer_key(module)
    return 0 if key is None else int(getattr(module.config, key))


def choose_layers(wanted: int | Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """The teacher's layers that a student is made of: those named, or ``wanted`` evenly spread ones, the last included.

    Raises:
        BadInputError: there are no such layers.
    """
    if wanted is None:
        return tuple(range(layers))
    if isinstance(wanted, int):
        if not 1 <= wanted <= layers:
            raise BadInputError("student_layers", str(wanted), expected=f"1 to {layers}, as the teacher has")
        return tuple(round((index + 1) * layers / wanted) - 1 for index in range(wanted))
    if not wanted or any(not 0 <= index < layers for index in wanted) or list(wanted) != sorted(set(wanted)):
        raise BadInputError(
            "student_layers", str(list(wanted)), expected=f"layers of the teacher in order, 0 to {layers - 1}"
        )
    return tuple(wanted)


def layer_names(module: nn.Module, count: int) -> list[str]:
    """The names of a model's ``count`` layers, in order."""
    prefix = _layer_prefix(module, count)
    return [f"{prefix}.{index}" for index in range(count)]


def shrink(model: TorchModel, layers: Sequence[int], sizes: Mapping[str, Any], seed: int) -> TorchModel:
    """The student that has the teacher's ``layers`` and, in its config, ``sizes``.

    Raises:
        BadInputError: the model isn't one of transformers, is factorized or pruned, or has no key of ``sizes``.
    """
    if model.factors or model.masks or model.resized:
        raise BadInputError(
            "recipe",
            "fewer layers of a model that earlier steps " + ("factorized" if model.factors else "pruned"),
            expected="the student first, then what changes its weights",
        )
    key = _layer_key(model.module)
    config = getattr(model.module, "config", None)
    if key is None or config is None:
        raise BadInputError(
            "recipe: distill",
            f"a smaller student of a {type(model.module).__name__}",
            expected="a model of transformers with layers",
            hint="without student_layers and student the original itself is trained",
        )
    plain = config.to_dict()
    unknown = [name for name in sizes if name not in plain]
    if unknown:
        raise BadInputError(
            "student", f'no "{unknown[0]}" in the config', expected="one of " + ", ".join(sorted(plain))
        )
    wanted = {**plain, key: len(layers), **sizes}
    if wanted[key] != len(layers):
        raise BadInputError(f"student: {key}", str(wanted[key]), expected="student_layers instead")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_student(model.module, wanted)
    _copy_weights(model.module, student, layers, getattr(config, key))
    known = model.layers or range(getattr(config, key))
    origins = tuple(known[layer] for layer in layers)
    return replace(model, module=student, config=wanted, layers=origins)


@torch.no_grad()
def _copy_weights(teacher: nn.Module, student: nn.Module, layers: Sequence[int], count: int) -> None:
    prefix = _layer_prefix(teacher, count)
    source = teacher.state_dict()
    for name, target in student.state_dict().items():
        match = re.fullmatch(re.escape(prefix) + r"\.(\d+)\.(.*)", name)
        origin = f"{prefix}.{layers[int(match[1])]}.{match[2]}" if match else name
        value = source.get(origin)
        if value is not None and value.dim() == target.dim():
            room = tuple(slice(0, min(sizes)) for sizes in zip(value.shape, target.shape, strict=True))
            target[room] = value[room]


def _layer_prefix(module: nn.Module, count: int) -> str:
    """The name of the list of ``count`` layers, the outermost if several are as long."""
    found = [name for name, child in module.named_modules() if isinstance(child, nn.ModuleList) and len(child) == count]
    if not found:
        raise BadInputError(
            "recipe: distill", f"no list of {count} layers in the model", expected="layers in one nn.ModuleList"
        )
    shortest: str = min(found, key=lambda name: name.count("."))
    return shortest


def _layer_key(module: nn.Module) -> str | None:
    config = getattr(module, "config", None)
    return next((key for key in LAYER_KEYS if isinstance(getattr(config, key, None), int)), None)
