"""Heads, neurons and channels of a torch module: what makes each, what uses it, and taking some out for good.

A *group* has ``count`` units that can go one by one. Its *producers* make them (rows of a linear layer's weight), its
*consumers* take them (columns). Known are the layers of transformers models by the names of their parts:

======================  ==========================================================================================
BERT and its relatives  ``self.query, key, value`` with ``output.dense``; ``intermediate.dense`` with ``output.dense``
DistilBERT              ``q_lin, k_lin, v_lin, out_lin``; ``lin1, lin2``
Llama and its relatives ``q_proj, k_proj, v_proj, o_proj``; ``gate_proj, up_proj, down_proj``
others                  ``fc1, fc2``
======================  ==========================================================================================

With grouped-query attention a unit is a key and value head with all query heads that read it, so that each group keeps
its shape. Convolutions, and linear layers of modules that aren't known, are found by torch-pruning's dependency graph
(Fang et al. 2023, arXiv 2301.12900): ``edgeslim.training.channels``.

Layout: units [count, size] of indices of rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = [
    "Group",
    "Kind",
    "Part",
    "attention_groups",
    "feed_forward_groups",
    "kept_indices",
    "read_matrix",
    "write_columns",
]

Kind = Literal["heads", "neurons", "channels"]
Indices = npt.NDArray[np.int64]

ATTENTION = (
    (("self.query", "self.key", "self.value"), "output.dense"),
    (("attention.query", "attention.key", "attention.value"), "output.dense"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("attn.q", "attn.k", "attn.v"), "attn.o"),
)
FEED_FORWARD = (
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("linear1",), "linear2"),
)
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads", "num_kv_heads")
WIDTHS = ("all_head_size", "dim", "inner_dim", "embed_dim")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer by its full name, and the inputs of it that each unit is; ``places`` under a kernel are a channel."""

    name: str
    units: Indices
    places: int = 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """``remove`` leaves the units of its argument (their sorted indices) alone, in all layers that have them."""

    kind: Kind
    name: str
    count: int
    consumers: tuple[Part, ...]
    remove: Callable[[Indices], None]


def kept_indices(part: Part, kept: Indices) -> Indices:
    """The inputs of a layer that the units ``kept`` are, sorted."""
    return np.sort(part.units[kept].ravel())


def attention_groups(module: nn.Module, skipped: dict[str, str]) -> list[Group]:
    """The attention of each layer that is known; why it can't be cut goes into ``skipped`` otherwise."""
    groups = []
    for name, owner, projections, output in _matches(module, ATTENTION):
        found = _attention(name, owner, projections, output)
        if isinstance(found, str):
            skipped[name] = found
        else:
            groups.append(found)
    for name, child in module.named_modules():
        if isinstance(child, nn.MultiheadAttention):
            skipped[name] = "nn.MultiheadAttention keeps its heads in one packed matrix"
    return groups


def feed_forward_groups(module: nn.Module, skipped: dict[str, str]) -> list[Group]:
    """The feed-forward layers that are known."""
    groups = []
    for _, _, makers, output in _matches(module, FEED_FORWARD):
        layers = {part: module.get_submodule(part) for part in (*makers, output)}
        reason = _linear_obstacle(layers)
        width = getattr(layers[output], "in_features", 0)
        if not reason and any(layers[part].out_features != width for part in makers):
            reason = f"{output} takes other channels than {', '.join(makers)} make"
        if reason:
            skipped[output] = reason
            continue
        units = np.arange(width, dtype=np.int64)[:, None]

        def remove(
            kept: Indices, layers: dict[str, Any] = layers, makers: Sequence[str] = makers, output: str = output
        ) -> None:
            for part in makers:
                _keep_rows(layers[part], kept)
            _keep_inputs(layers[output], kept)

        groups.append(
            Group(kind="neurons", name=output, count=width, consumers=(Part(name=output, units=units),), remove=remove)
        )
    return groups


@torch.no_grad()
def write_columns(layer: Any, columns: Indices, weight: npt.NDArray[Any], shift: npt.NDArray[Any] | None) -> None:
    """Puts ``weight`` [len(columns), out] in the place of some inputs of a linear layer or convolution."""
    stored = layer.weight.detach().numpy().reshape(len(layer.weight), -1).copy()
    stored[:, columns] = np.asarray(weight, np.float32).T
    layer.weight.copy_(torch.from_numpy(stored).reshape(layer.weight.shape))
    if shift is not None and layer.bias is not None:
        layer.bias += torch.from_numpy(np.asarray(shift, np.float32))


def read_matrix(layer: Any) -> npt.NDArray[np.float32]:
    """The weight of a linear layer or convolution, [in, out]; a convolution's inputs are (channel, row, column)."""
    array: npt.NDArray[np.float32] = layer.weight.detach().numpy()
    return array.reshape(len(array), -1).T


def _attention(name: str, owner: nn.Module, projections: Sequence[str], output: str) -> Group | str:
    layers: dict[str, Any] = {part: owner.get_submodule(part) for part in (*projections, output)}
    reason = _linear_obstacle(layers)
    if reason:
        return reason
    query, key, value = (layers[part] for part in projections)
    holder: Any = owner.get_submodule(projections[0].rpartition(".")[0])
    heads = next((getattr(holder, attr) for attr in HEAD_COUNTS[:3] if isinstance(getattr(holder, attr, None), int)), 0)
    size = next(
        (
            getattr(holder, attr)
            for attr in ("attention_head_size", "head_dim")
            if isinstance(getattr(holder, attr, None), int)
        ),
        query.out_features // heads if heads else 0,
    )
    if not size or query.out_features % size or key.out_features % size:
        return "how many heads it has can't be told"
    heads, pairs = query.out_features // size, key.out_features // size
    if heads % pairs or value.out_features != key.out_features or layers[output].in_features != query.out_features:
        return "its projections don't have heads of one size"
    if any(isinstance(child, nn.Embedding) for child in holder.children()):
        return "its heads share a table of positions"
    if any("norm" in part.lower() and part not in layers for part, _ in holder.named_children()) and _wide_norm(
        holder, size
    ):
        return "a norm spans all of its heads"
    shared = heads // pairs
    wide = np.arange(heads * size, dtype=np.int64).reshape(pairs, shared * size)
    narrow = np.arange(pairs * size, dtype=np.int64).reshape(pairs, size)

    def remove(kept: Indices) -> None:
        _keep_rows(query, wide[kept].ravel())
        for layer in (key, value):
            _keep_rows(layer, narrow[kept].ravel())
        _keep_inputs(layers[output], wide[kept].ravel())
        for attr in HEAD_COUNTS:
            count = getattr(holder, attr, None)
            if isinstance(count, int):
                setattr(holder, attr, count * len(kept) // pairs)
        for attr in WIDTHS:
            if getattr(holder, attr, None) == heads * size:
                setattr(holder, attr, len(kept) * shared * size)

    full = f"{name}.{output}".lstrip(".")
    return Group(kind="heads", name=full, count=pairs, consumers=(Part(name=full, units=wide),), remove=remove)


def _wide_norm(holder: Any, size: int) -> bool:
    return any(
        getattr(child, "weight", None) is not None and child.weight.numel() != size
        for part, child in holder.named_children()
        if "norm" in part.lower()
    )


def _matches(
    module: nn.Module, table: Sequence[tuple[Sequence[str], str]]
) -> Iterator[tuple[str, nn.Module, tuple[str, ...], str]]:
    """(name, owner, makers, output): for attention by names within the owner, else by full names; each layer once."""
    relative = table is ATTENTION
    taken: set[str] = set()
    for name, owner in module.named_modules():
        for makers, output in table:
            parts = (*makers, output)
            if not all(_has(owner, part) for part in parts):
                continue
            full = [f"{name}.{part}".lstrip(".") for part in parts]
            if taken & set(full):
                continue
            taken |= set(full)
            yield name, owner, tuple(parts[:-1] if relative else full[:-1]), output if relative else full[-1]


def _has(owner: nn.Module, path: str) -> bool:
    for part in path.split("."):
        child = owner._modules.get(part)
        if child is None:
            return False
        owner = child
    return True


def _linear_obstacle(layers: dict[str, Any]) -> str:
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            return f"{name} is a {type(layer).__name__}, not a linear layer"
        if layer.weight.dtype != torch.float32:
            return f"{name} is {layer.weight.dtype}, not float32"
    return ""


@torch.no_grad()
def _keep_rows(layer: nn.Linear, rows: Indices) -> None:
    index = torch.from_numpy(np.ascontiguousarray(rows))
    layer.weight = nn.Parameter(layer.weight[index].clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[index].clone(), requires_grad=layer.bias.requires_grad)
    layer.out_features = len(rows)


@torch.no_grad()
def _keep_inputs(layer: nn.Linear, columns: Indices) -> None:
    index = torch.from_numpy(np.ascontiguousarray(columns))
    layer.weight = nn.Parameter(layer.weight[:, index].clone(), requires_grad=layer.weight.requires_grad)
    layer.in_features = len(columns)
