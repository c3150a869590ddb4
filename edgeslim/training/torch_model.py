"""A torch model as stages pass it on, and its form on disk: safetensors and JSON, never a pickle.

The module itself can't be written without a pickle. So a folder holds what tells it from the source's module: the
``config`` of a student of other sizes, the ``resized`` layers from which heads, neurons or channels were taken, the
``factors`` (linear layers that are two now), and all weights; the source's module is loaded again and changed
accordingly. Files of a folder::

    state.safetensors     parameters and buffers by name; tied ones once a name
    masks.safetensors     a boolean tensor for each masked parameter (edgeslim.training.masks)
    structure.json        {"output": …, "config": {…} or null, "factors": {name: rank},
                           "resized": {layer: {attribute: whole number}}, "layers": [of the source's] or null}
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeslim.errors import BadInputError
from edgeslim.training.masks import Masks

__all__ = [
    "LowRankLinear",
    "TorchModel",
    "build_student",
    "changed_sizes",
    "factor_linear",
    "load_model",
    "read_sizes",
    "save_model",
]

STATE_NAME = "state.safetensors"
MASKS_NAME = "masks.safetensors"
STRUCTURE_NAME = "structure.json"
MAX_STRUCTURE_BYTES = 4 << 20


class LowRankLinear(nn.Sequential):
    """Two linear layers for one: ``x Aᵀ Bᵀ + b``, ``A [rank, inputs]`` without a bias, ``B [outputs, rank]``."""

    def __init__(self, inputs: int, rank: int, outputs: int, *, bias: bool) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """A module with what stages have done to it.

    ``output`` names the output that counts (``logits``, ``last_hidden_state``); ``None`` takes a module's first tensor.
    ``factors`` are the ranks of factorized linear layers by name, ``config`` that of a student whose sizes aren't the
    source's. ``resized`` holds the whole numbers (``num_attention_heads``, ``out_features``) that pruning of heads,
    neurons or channels changed, by layer. ``layers`` are the original's layers that are left, where some were taken
    out. ``masks`` say which weights are zero.
    """

    module: nn.Module
    output: str | None = None
    masks: Masks = field(default_factory=dict)
    factors: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    resized: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None

    def take(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of ``inputs`` that ``forward`` takes, in its order."""
        return {name: inputs[name] for name in inspect.signature(self.module.forward).parameters if name in inputs}

    def pick(self, outputs: Any) -> Tensor:
        """The output that counts among what the module returned."""
        if self.output is not None:
            return outputs[self.output]  # type: ignore[no-any-return]
        while not isinstance(outputs, Tensor):
            outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
        return outputs

    def copied(self) -> TorchModel:
        """The same with a module of its own, so that training it leaves this one alone."""
        return replace(self, module=copy.deepcopy(self.module))

    def frozen(self) -> TorchModel:
        """The same in eval mode and without gradients: a teacher."""
        self.module.eval().requires_grad_(requires_grad=False)
        return self


def factor_linear(module: nn.Module, name: str, rank: int) -> LowRankLinear:
    """Puts a ``LowRankLinear`` of random weights in place of the linear layer ``name``, and returns it.

    Raises:
        BadInputError: there is no such linear layer.
    """
    try:
        old = module.get_submodule(name)
    except AttributeError as error:
        raise BadInputError(name, "no such layer", expected="the name of a linear layer") from error
    if not isinstance(old, nn.Linear):
        raise BadInputError(name, f"a {type(old).__name__}", expected="a linear layer")
    new = LowRankLinear(old.in_features, rank, old.out_features, bias=old.bias is not None)
    new.train(old.training)
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)
    return new


def build_student(original: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A transformers module of the original's class with random weights and the sizes of ``config``.

    Raises:
        BadInputError: the original is no transformers model, or its class refuses the sizes.
    """
    kind: Any = type(getattr(original, "config", None))
    if not hasattr(kind, "from_dict"):
        raise BadInputError("student", f"a {type(original).__name__}", expected="a model of transformers")
    try:
        made = kind.from_dict(dict(config))
        made._attn_implementation = "eager"  # as the source was loaded: it exports to plain operators
        student: nn.Module = type(original)(made)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise BadInputError("student", f"{error}"[:300], expected="sizes that fit each other") from error
    if getattr(original, "pooler", student) is None:
        student.pooler = None  # type: ignore[assignment]
    return student.eval()


def read_sizes(module: nn.Module) -> dict[str, dict[str, int]]:
    """The whole numbers among the attributes of the module's layers, by layer."""
    return {
        name: {key: value for key, value in vars(layer).items() if type(value) is int}
        for name, layer in module.named_modules()
    }


def changed_sizes(before: Mapping[str, Mapping[str, int]], module: nn.Module) -> dict[str, dict[str, int]]:
    """Those that ``read_sizes`` had otherwise ``before``."""
    found = {
        name: {key: value for key, value in sizes.items() if before.get(name, {}).get(key, value) != value}
        for name, sizes in read_sizes(module).items()
    }
    return {name: sizes for name, sizes in found.items() if sizes}


def save_model(model: TorchModel, folder: Path) -> None:
    """Writes ``model`` into the existing ``folder``."""
    state = {name: value.detach().clone().contiguous() for name, value in model.module.state_dict().items()}
    save_file(state, folder / STATE_NAME)
    save_file({name: mask.contiguous() for name, mask in model.masks.items()}, folder / MASKS_NAME)
    structure = {
        "output": model.output,
        "config": None if model.config is None else dict(model.config),
        "factors": dict(model.factors),
        "resized": {name: dict(sizes) for name, sizes in model.resized.items()},
        "layers": None if model.layers is None else list(model.layers),
    }
    (folder / STRUCTURE_NAME).write_text(json.dumps(structure, sort_keys=True), encoding="utf-8")


def load_model(original: TorchModel, folder: Path) -> TorchModel:
    """What ``save_model`` wrote of a model that came from ``original``, whose module is left alone.

    Raises:
        BadInputError: the files don't fit the original.
    """
    path = folder / STRUCTURE_NAME
    try:
        if path.stat().st_size > MAX_STRUCTURE_BYTES:
            raise BadInputError(str(path), f"{path.stat().st_size:,} bytes", expected="a small description")
        structure = json.loads(path.read_text(encoding="utf-8"))
        config, factors = structure["config"], {str(name): int(rank) for name, rank in structure["factors"].items()}
        resized = {
            str(name): {str(key): int(value) for key, value in sizes.items()}
            for name, sizes in structure.get("resized", {}).items()
        }
        kept = structure.get("layers")
        layers = None if kept is None else tuple(int(layer) for layer in kept)
        state, masks = load_file(folder / STATE_NAME), load_file(folder / MASKS_NAME)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(str(folder), f"{error}"[:300], expected="the files of a torch model") from error
    module = copy.deepcopy(original.module) if config is None else build_student(original.module, config)
    _resize(module, resized, state)
    for name, rank in factors.items():
        factor_linear(module, name, rank)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BadInputError(str(folder), f"{error}"[:300], expected="weights that fit the model") from error
    return replace(
        original, module=module.eval(), masks=masks, factors=factors, config=config, resized=resized, layers=layers
    )


def _resize(module: nn.Module, resized: Mapping[str, Mapping[str, int]], state: Mapping[str, Tensor]) -> None:
    """Sets the sizes of ``resized``, and gives its layers parameters and buffers of the state's shapes."""
    for name, sizes in resized.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError as error:
            raise BadInputError(name, "no such layer", expected="a layer of the model") from error
        for key, value in sizes.items():
            if type(vars(layer).get(key)) is not int:
                raise BadInputError(f"{name}.{key}", "no whole number", expected="a size of the layer")
            setattr(layer, key, value)
        for key, old in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            stored = state.get(f"{name}.{key}".lstrip("."))
            if stored is None or stored.shape == old.shape:
                continue
            if isinstance(old, nn.Parameter):
                setattr(layer, key, nn.Parameter(torch.empty_like(stored), requires_grad=old.requires_grad))
            else:
                layer.register_buffer(key, torch.empty_like(stored))
