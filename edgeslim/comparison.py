"""A model before and after its compression: bytes by layer, and how the largest tensors use their quantization grids.

Layers are matched by module path, and layers of one repeated block are taken together, so that the two graphs may name
and split their tensors differently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeslim.anatomy import count_levels
from edgeslim.module_paths import GROUPS, block_path, group_layers, layer_path
from edgeslim.tensor_files import StoredTensor, TensorFile, read_onnx

__all__ = ["BlockBytes", "Comparison", "Levels", "compare_files", "compare_models"]

MAX_BLOCKS = 40
MIN_SHARE = 0.002
MAX_LEVELS = 256
BINS = 64
SHOWN_TENSORS = 6
CONSTANTS = "constants of the graph"
_Table = dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Bytes of one block by group, in the order of ``GROUPS``; ``layers`` were taken together in it."""

    block: str
    layers: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How often each level of a tensor's grid is used: ``counts[i]`` values lie at ``positions[i]``, which rise.

    ``step`` is the distance of two neighbours on an even grid, and 0 for a codebook. ``grid`` says it in words.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    grid: str
    step: float
    positions: tuple[float, ...]
    counts: tuple[int, ...]
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Blocks in the model's order, the smallest of them together at the end; and the largest tensors' levels."""

    blocks: tuple[BlockBytes, ...]
    levels: tuple[Levels, ...]


def compare_files(reference: Path, model: Path, packed: Path) -> Comparison:
    """Compares the float export with the model as its container stores it.

    Raises:
        BadInputError: one of the files can't be read.
    """
    return compare_models(read_onnx(reference), read_onnx(model, packed))


def compare_models(before: TensorFile, after: TensorFile) -> Comparison:
    """Compares two forms of one model."""
    largest = sorted(after.tensors, key=lambda tensor: -tensor.values)[:SHOWN_TENSORS]
    levels = [_levels(tensor) for tensor in largest if tensor.values >= BINS]
    return Comparison(
        blocks=tuple(_blocks(_by_block(before.tensors), _by_block(after.tensors))),
        levels=tuple(item for item in levels if item is not None),
    )


def _by_block(tensors: Iterable[StoredTensor]) -> _Table:
    """Stored bytes by block and group; what has no path stands under one name."""
    paths = [(layer_path(tensor.name, tensor.node), tensor.stored_bytes) for tensor in tensors]
    groups = group_layers(layer for layer, _ in paths)
    table: _Table = defaultdict(lambda: dict.fromkeys(GROUPS, 0))
    for layer, size in paths:
        table[block_path(layer) or CONSTANTS][groups[layer]] += size
    return table


def _blocks(before: _Table, after: _Table) -> Iterable[BlockBytes]:
    nothing = dict.fromkeys(GROUPS, 0)
    rows = [
        BlockBytes(
            block=block,
            layers=1,
            before=tuple(before.get(block, nothing).values()),
            after=tuple(after.get(block, nothing).values()),
        )
        for block in dict.fromkeys((*before, *after))
    ]
    total = sum(sum(row.before) + sum(row.after) for row in rows)
    weights = sorted((sum(row.before) + sum(row.after) for row in rows), reverse=True)
    least = max(MIN_SHARE * total, weights[MAX_BLOCKS] + 1 if len(weights) > MAX_BLOCKS else 0)
    large = [row for row in rows if sum(row.before) + sum(row.after) >= least]
    small = [row for row in rows if sum(row.before) + sum(row.after) < least]
    yield from large
    if small:
        yield BlockBytes(
            block=small[0].block if len(small) == 1 else f"{len(small)} smaller layers",
            layers=len(small),
            before=tuple(sum(row.before[index] for row in small) for index in range(len(GROUPS))),
            after=tuple(sum(row.after[index] for row in small) for index in range(len(GROUPS))),
        )


def _levels(tensor: StoredTensor) -> Levels | None:
    found = Levels(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        grid="",
        step=0.0,
        positions=(),
        counts=(),
        stored_bytes=tensor.stored_bytes,
    )
    if tensor.bits <= 8 and tensor.dtype.startswith(("int", "uint")):
        counts, half = count_levels(tensor), 1 << (tensor.bits - 1)
        low = -half if tensor.dtype.startswith("int") else 0
        counts = np.roll(counts, half) if low else counts
        grid = f"{np.count_nonzero(counts)} of {counts.size} levels used"
        positions = range(low, low + counts.size)
        return replace(found, grid=grid, step=1.0, positions=tuple(map(float, positions)), counts=_plain(counts))
    if tensor.dtype in ("float32", "float16"):
        return _float_levels(tensor, found)
    return None


def _float_levels(tensor: StoredTensor, found: Levels) -> Levels | None:
    """A codebook's values where there are few, else equal bins."""
    kind = np.dtype(f"<f{tensor.bits // 8}")
    known: npt.NDArray[np.float64] | None = np.empty(0)
    low, high = np.inf, -np.inf
    for chunk in tensor.chunks():
        values = np.frombuffer(chunk, kind).astype(np.float64)
        if not np.isfinite(values).all():
            return None
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if known is not None:
            known = np.union1d(known, values)
            known = known if known.size <= MAX_LEVELS else None
    edges = np.linspace(low, high, BINS + 1)
    counts = np.zeros(BINS if known is None else known.size, np.int64)
    for chunk in tensor.chunks():
        values = np.frombuffer(chunk, kind).astype(np.float64)
        if known is None:
            counts += np.histogram(values, edges)[0]
        else:
            counts += np.bincount(np.searchsorted(known, values), minlength=known.size)
    if known is not None:
        grid = f"{known.size} values"
        return replace(found, grid=grid, positions=tuple(map(float, known)), counts=_plain(counts))
    middles, step = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    return replace(
        found, grid=f"no grid: {BINS} bins", step=step, positions=tuple(map(float, middles)), counts=_plain(counts)
    )


def _plain(counts: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)
