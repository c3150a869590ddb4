"""Where a model's bytes are, and what its weights look like: one row a tensor, totals by group.

For each tensor: what it takes in its file and at run time, bits a value, how many values are exactly zero, how many
different ones there are, and the order-0 entropy, which no code that treats values one by one can get below (Shannon
1948). Where values hardly repeat (dense float32), the entropy of values says only how many there are; then the bytes
of a value are counted by their position and their entropies added up, which is what a bytewise code could reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BadInputError
from edgeslim.graphs.container_tensors import open_container
from edgeslim.module_paths import GROUPS, block_path, group_layers, layer_path
from edgeslim.source import resolve_source
from edgeslim.tensor_files import (
    FileSize,
    StoredTensor,
    TensorFile,
    open_package,
    read_onnx,
    read_safetensors,
)

__all__ = [
    "Anatomy",
    "GroupTotal",
    "TensorFacts",
    "ValueFacts",
    "count_levels",
    "dissect_model",
    "measure_values",
    "open_model",
]

MAX_DISTINCT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ValueFacts:
    """What the values of a tensor look like. ``distinct`` is ``None`` above 65,536, ``entropy_bits`` for no values.

    -0.0 counts as zero; distinct are bit patterns.
    """

    zeros: int
    distinct: int | None
    entropy_bits: float | None


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """One tensor. ``layer`` is the module's path, ``block`` its repeated part; ``parameters`` is a number of values."""

    name: str
    layer: str
    block: str
    group: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    stored_bytes: int
    runtime_bytes: int
    bits: float | None
    entropy_bits: float | None
    zeros: int
    sparsity: float | None
    distinct: int | None
    alphabet: str


@dataclass(frozen=True, kw_only=True)
class GroupTotal:
    """The tensors of a group together."""

    group: str
    tensors: int
    parameters: int
    stored_bytes: int
    runtime_bytes: int
    bits: float | None
    sparsity: float | None


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A whole model; the largest tensor comes first. ``bytes`` are those of all its files (or of the package)."""

    model: str
    kind: str
    bytes: int
    files: tuple[FileSize, ...]
    groups: tuple[GroupTotal, ...]
    total: GroupTotal
    tensors: tuple[TensorFacts, ...]


def dissect_model(model: str) -> Anatomy:
    """Looks at every value of a model or package, one tensor after the other.

    Raises:
        BadInputError: there is no such model, or its files don't hold what they say.
        MissingToolError: it is in a package that isn't installed.
    """
    with open_model(model) as (path, found):
        groups = group_layers(layer_path(tensor.name, tensor.node) for tensor in found.tensors)
        rows = [_facts(tensor, groups) for tensor in found.tensors]
        size = path.stat().st_size if found.kind == "package" else sum(file.bytes for file in found.files)
    rows.sort(key=lambda row: (-row.stored_bytes, -row.runtime_bytes, row.name))
    return Anatomy(
        model=model,
        kind=found.kind,
        bytes=size,
        files=found.files,
        groups=tuple(_total(name, [row for row in rows if row.group == name]) for name in GROUPS),
        total=_total("all", rows),
        tensors=tuple(rows),
    )


@contextmanager
def open_model(model: str) -> Iterator[tuple[Path, TensorFile]]:
    """Where ``model`` lies and its tensors: an archive, container, ``.safetensors``, or a ``resolve_source`` result."""
    path = Path(model)
    if model.endswith((".aar", ".tar.gz")) and not model.startswith("pkg://"):
        if not path.is_file():
            raise BadInputError(model, "no such file", expected="a package that edgeslim built")
        with open_package(path) as opened:
            yield path, opened
        return
    if path.suffix == ".esz" and path.is_file():
        with open_container(path) as opened:
            yield path, opened
        return
    if path.suffix == ".safetensors" and path.is_file():
        yield path, read_safetensors([path])
        return
    source = resolve_source(model)
    if source.path is None or source.kind == "module":
        raise BadInputError(
            model,
            "own code has no files to look into",
            expected="a Hugging Face folder or id, .safetensors, .onnx, or a package",
            hint="build it first and inspect the package",
        )
    if source.kind == "onnx":
        yield source.path, read_onnx(source.path)
    else:
        # As transformers reads it: one file, or all shards. Other forms of the same weights lie in subfolders.
        whole = source.path / "model.safetensors"
        yield source.path, read_safetensors([whole] if whole.is_file() else sorted(source.path.glob("*.safetensors")))


def measure_values(tensor: StoredTensor) -> ValueFacts:
    """Counts the values of ``tensor``, a chunk at a time.

    Raises:
        BadInputError: its file ends too early.
    """
    if tensor.values == 0 or tensor.bits not in (1, 2, 4, 8, 16, 32, 64):
        return ValueFacts(zeros=0, distinct=0 if tensor.values == 0 else None, entropy_bits=None)
    if tensor.bits <= 16:
        levels = count_levels(tensor)
        zeros = int(levels[0]) + (int(levels[1 << (tensor.bits - 1)]) if _has_negative_zero(tensor) else 0)
        distinct = int(np.count_nonzero(levels))
        return ValueFacts(zeros=zeros, distinct=distinct, entropy_bits=_entropy(levels))
    return _measure_wide(tensor)


def count_levels(tensor: StoredTensor) -> npt.NDArray[np.int64]:
    """How often each bit pattern of a tensor of up to 16 bits a value comes: int64 [2 ** bits]."""
    counts = np.zeros(1 << tensor.bits, np.int64)
    left = tensor.values
    for chunk in tensor.chunks():
        values = _patterns(chunk, tensor.bits)[:left]  # the last byte may hold fewer values than it could
        left -= values.size
        counts += np.bincount(values, minlength=counts.size)
    return counts


def _patterns(chunk: bytes, bits: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    if bits == 16:
        return np.frombuffer(chunk, "<u2")
    packed = np.frombuffer(chunk, np.uint8)
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)).ravel()


def _measure_wide(tensor: StoredTensor) -> ValueFacts:
    width = tensor.bits // 8
    zeros = 0
    known: npt.NDArray[np.unsignedinteger] | None = np.empty(0, f"<u{width}")
    counts = np.empty(0, np.int64)
    positions = np.zeros((width, 256), np.int64)
    for chunk in tensor.chunks():
        values = np.frombuffer(chunk, f"<u{width}")
        zeros += values.size - int(np.count_nonzero(values << 1 if _has_negative_zero(tensor) else values))
        columns = np.frombuffer(chunk, np.uint8).reshape(-1, width)
        for position in range(width):
            positions[position] += np.bincount(columns[:, position], minlength=256)
        if known is not None:
            new, times = np.unique(values, return_counts=True)
            known, where = np.unique(np.concatenate([known, new]), return_inverse=True)
            counts = np.bincount(where, np.concatenate([counts, times]), known.size).astype(np.int64)
            if known.size > MAX_DISTINCT:
                known = None
    by_bytes = sum(_entropy(row) for row in positions)
    entropy = by_bytes if known is None or 2 * known.size > tensor.values else _entropy(counts)
    return ValueFacts(zeros=zeros, distinct=None if known is None else int(known.size), entropy_bits=entropy)


def _has_negative_zero(tensor: StoredTensor) -> bool:
    return tensor.dtype.startswith(("float", "bfloat")) and not tensor.dtype.endswith(("fnuz", "e8m0"))


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Order-0 entropy in bits of what came ``counts`` times."""
    used = counts[counts > 0].astype(np.float64)
    total = float(used.sum())
    return max(0.0, math.log2(total) - float(np.sum(used * np.log2(used))) / total)


def _facts(tensor: StoredTensor, groups: dict[str, str]) -> TensorFacts:
    values = measure_values(tensor)
    layer = layer_path(tensor.name, tensor.node)
    some = tensor.values > 0
    return TensorFacts(
        name=tensor.name,
        layer=layer,
        block=block_path(layer),
        group=groups[layer],
        dtype=tensor.dtype,
        shape=tensor.shape,
        parameters=tensor.values,
        stored_bytes=tensor.stored_bytes,
        runtime_bytes=tensor.bytes,
        bits=tensor.stored_bytes * 8 / tensor.values if some else None,
        entropy_bits=values.entropy_bits,
        zeros=values.zeros,
        sparsity=values.zeros / tensor.values if some else None,
        distinct=values.distinct,
        alphabet=tensor.alphabet,
    )


def _total(name: str, rows: list[TensorFacts]) -> GroupTotal:
    parameters, stored = sum(row.parameters for row in rows), sum(row.stored_bytes for row in rows)
    return GroupTotal(
        group=name,
        tensors=len(rows),
        parameters=parameters,
        stored_bytes=stored,
        runtime_bytes=sum(row.runtime_bytes for row in rows),
        bits=stored * 8 / parameters if parameters else None,
        sparsity=sum(row.zeros for row in rows) / parameters if parameters else None,
    )
