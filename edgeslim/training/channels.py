"""Channels of convolutions, and neurons of linear layers in modules of any kind, by torch-pruning's dependency graph.

torch-pruning (Fang et al. 2023, arXiv 2301.12900) traces a run and tells which rows and columns of which layers go
together: over norms, residual sums, depthwise convolutions and flattening. A group is offered only if taking one unit
out of a copy leaves the shapes of all the module's outputs as they are.

Layout: units [count, size] of columns of a consumer's matrix; a convolution's are (channel, row, column).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeslim.errors import MissingToolError
from edgeslim.training.unit_groups import Group, Kind, Part

__all__ = ["dependent_groups"]


def dependent_groups(
    module: nn.Module, inputs: Mapping[str, Tensor], kind: Kind, skipped: dict[str, str]
) -> list[Group]:
    """The groups whose root is a convolution (``channels``) or a linear layer (``neurons``).

    Raises:
        MissingToolError: torch-pruning isn't installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingToolError(
            "torch-pruning", "not installed", expected="torch-pruning", hint="pip install 'edgeslim[prune]'"
        ) from error
    root = nn.Conv2d if kind == "channels" else nn.Linear
    graph = _trace(torch_pruning, module, inputs)
    names = {child: name for name, child in module.named_modules()}
    wanted = _shapes(module, inputs)
    groups = []
    for found in graph.get_all_groups(root_module_types=[root]):
        layer = found[0].dep.target.module
        name, count = names[layer], len(found[0].idxs)
        consumers = _consumers(found, names, count)
        if not consumers:
            skipped[name] = "no layer takes what it makes"
            continue
        reason = _try(torch_pruning, module, name, inputs, wanted)
        if reason:
            skipped[name] = reason
            continue

        def remove(kept: npt.NDArray[np.int64], layer: nn.Module = layer, count: int = count) -> None:
            gone = sorted(set(range(count)) - set(kept.tolist()))
            traced = _trace(torch_pruning, module, inputs)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced.get_pruning_group(layer, _pruner(torch_pruning, layer), gone).prune()

        groups.append(Group(kind=kind, name=name, count=count, consumers=tuple(consumers), remove=remove))
    return groups


def _trace(library: Any, module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return library.DependencyGraph().build_dependency(module, example_inputs=dict(inputs))


def _pruner(library: Any, layer: nn.Module) -> Any:
    return library.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else library.prune_linear_out_channels


def _consumers(found: Any, names: Mapping[nn.Module, str], count: int) -> list[Part]:
    parts = []
    for item in found:
        layer = item.dep.target.module
        if layer not in names or item.dep.handler.__name__ not in ("prune_in_channels", "prune_linear_in_channels"):
            continue
        if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) != 1:
            continue
        roots = np.asarray(item.root_idxs if item.root_idxs is not None else item.idxs, np.int64)
        columns = np.asarray(item.idxs, np.int64)[np.argsort(roots, kind="stable")]
        if len(columns) % count or not np.array_equal(np.bincount(roots), np.full(count, len(columns) // count)):
            continue
        size = int(np.prod(layer.kernel_size)) if isinstance(layer, nn.Conv2d) else 1
        spread = (columns[:, None] * size + np.arange(size)).reshape(count, -1)
        parts.append(Part(name=names[layer], units=spread, places=size))
    return parts


def _try(library: Any, module: nn.Module, name: str, inputs: Mapping[str, Tensor], wanted: list[Any]) -> str:
    """Why no unit of the layer ``name`` can go, from a try on a copy; an empty string if one can."""
    trial = copy.deepcopy(module)
    layer: Any = trial.get_submodule(name)
    if layer.weight.shape[0] < 2:
        return "it makes a single channel"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _trace(library, trial, inputs).get_pruning_group(layer, _pruner(library, layer), [0]).prune()
        shapes = _shapes(trial, inputs)
    except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError, TypeError) as error:
        return "a copy without one of its channels fails: " + (str(error).splitlines() or [type(error).__name__])[0]
    return "" if shapes == wanted else "its channels reach the module's outputs"


@torch.no_grad()
def _shapes(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[Any]:
    found: list[Any] = []

    def walk(made: Any) -> None:
        if isinstance(made, Tensor):
            found.append(tuple(made.shape))
        elif isinstance(made, Mapping | tuple | list):
            for item in made.values() if isinstance(made, Mapping) else made:
                walk(item)

    walk(module(**inputs))
    return found
