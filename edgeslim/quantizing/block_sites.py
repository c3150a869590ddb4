"""Which matrices of a graph can be stored in blocks of few bits, and who reads them.

A matrix is written ``[rows, width]``: an output channel of a MatMul or Gemm, or an entry of an embedding table, is a
row. Reading a weight that way shows which ones are *tied*: a table and the transposed weight of an output layer are the
same matrix, whether the graph transposes one initializer or holds both. Such a matrix is one site with many readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.graphs.int8_forms import Linear, Table
from edgeslim.quantizing.int8_sites import SiteFinder

__all__ = ["Matrix", "find_matrices"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """``weight`` float32 [rows, width] and its readers; ``name`` is its first reader's."""

    name: str
    weight: npt.NDArray[np.float32]
    linears: tuple[Linear, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether both a linear layer and a table read it."""
        return bool(self.linears and self.tables)

    @property
    def readers(self) -> int:
        """How many nodes read it."""
        return len(self.linears) + len(self.tables)


def find_matrices(
    graph: ir.Graph, *, embeddings: bool, min_elements: int, keep_float: Sequence[str], skipped: dict[str, str]
) -> list[Matrix]:
    """The matrices of MatMul and Gemm, then those of Gather, equal ones once; ``skipped`` says what is left alone."""
    finder = SiteFinder(keep_float=keep_float, min_elements=min_elements)
    found: dict[str, Matrix] = {}

    def add(matrix: Matrix) -> None:
        key = _content_key(matrix.weight)
        found[key] = _join(found[key], matrix) if key in found else matrix

    for linear in finder.linears(graph, skipped):
        add(Matrix(name=linear.name, weight=np.ascontiguousarray(linear.weight.T), linears=(linear,)))
    for table in finder.tables(graph, skipped):
        if not embeddings:
            skipped[table.name] = "embeddings are kept float by the recipe"
        elif table.weight.shape[1] % 2:
            skipped[table.name] = f"its rows have {table.weight.shape[1]} values, an odd number"
        else:
            add(Matrix(name=table.name, weight=np.ascontiguousarray(table.weight), tables=(table,)))
    return list(found.values())


def _join(known: Matrix, other: Matrix) -> Matrix:
    return replace(known, linears=known.linears + other.linears, tables=known.tables + other.tables)


def _content_key(weight: npt.NDArray[np.float32]) -> str:
    return f"{weight.shape}{hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()}"
