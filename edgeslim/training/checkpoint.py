"""What a training goes on from after a kill: tensors as safetensors and numbers as JSON, never a pickle.

A folder holds one checkpoint, ``step-N``, with ``tensors.safetensors`` (the model, the optimizer's moments, the best
model so far, masks that grow) and ``progress.json``. A new one is written beside it and renamed, then the old one is
removed, so that a kill at any moment leaves a whole one. One that doesn't fit or isn't whole counts as none.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["load_checkpoint", "optimizer_tensors", "restore_optimizer", "save_checkpoint"]

TENSORS_NAME = "tensors.safetensors"
PROGRESS_NAME = "progress.json"
MAX_PROGRESS_BYTES = 64 << 20
_STEP = re.compile(r"step-(\d{1,12})")


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Writes the checkpoint after ``step``, and removes those before it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".step-{step}.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, made / TENSORS_NAME)
    (made / PROGRESS_NAME).write_text(json.dumps({**progress, "step": step}), encoding="utf-8")
    place = folder / f"step-{step}"
    shutil.rmtree(place, ignore_errors=True)
    made.rename(place)
    for other, path in _checkpoints(folder):
        if other != step:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and progress of the newest whole checkpoint whose ``key`` is this one, or ``None``."""
    for step, path in sorted(_checkpoints(folder), reverse=True):
        with suppress(OSError, ValueError, TypeError, RecursionError, SafetensorError):
            if (path / PROGRESS_NAME).stat().st_size > MAX_PROGRESS_BYTES:
                continue
            progress = json.loads((path / PROGRESS_NAME).read_text(encoding="utf-8"))
            if isinstance(progress, dict) and progress.get("key") == key and progress.get("step") == step:
                return load_file(path / TENSORS_NAME), progress
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as ``optimizer.KEY.PARAMETER``; ``names`` are those of parameters by ``id``."""
    return {
        f"optimizer.{key}.{names[id(parameter)]}": value
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> None:
    """Puts what ``optimizer_tensors`` gave back."""
    by_name = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, key, parameter = name.split(".", 2)
            optimizer.state[by_name[parameter]][key] = value


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if match := _STEP.fullmatch(path.name):
                yield int(match[1]), path
