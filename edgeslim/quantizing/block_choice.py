"""Choosing a grid for each matrix of a graph, by what quantizing it does to the model's output.

One run a matrix on a few calibration samples, with that matrix alone on a coarse grid, tells how much of the output's
energy it costs. For the other grids that loss is taken to follow the layer's own output error, tr(E H Eᵀ) with E the
rounding error and H the inputs' second moments (the identity for tables), which needs no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.block_budget import Choice, choose_within
from edgeslim.algorithms.block_gptq import hessian_error
from edgeslim.algorithms.blockwise import count_blocks, round_blocks, stored_bytes
from edgeslim.core import Batch, Feed, Progress
from edgeslim.graphs.weight_probe import WeightProbe
from edgeslim.quantizing.block_sites import Matrix

__all__ = ["GRIDS", "choose_grids", "matrix_bytes"]

GRIDS: tuple[tuple[int, int], ...] = ((4, 128), (4, 64), (4, 32), (4, 16), (8, 128), (8, 32))
"""Bits and block sizes on offer."""
TRIED = (4, 32)
SAMPLES = 32
ROWS = 512


def choose_grids(
    matrices: Sequence[Matrix],
    hessians: Mapping[str, npt.NDArray[np.float64]],
    probe: WeightProbe,
    batches: Sequence[Batch],
    max_bytes: int,
    *,
    symmetric: bool,
    progress: Progress,
) -> dict[str, Choice]:
    """A grid for each matrix by name, together at most ``max_bytes``, with the least expected loss of output.

    ``hessians`` are those of the matrices that linear layers read. The samples are spread over ``batches``.

    Raises:
        ValueError: even the coarsest grids take more.
    """
    few = [batches[int(index)] for index in np.linspace(0, len(batches) - 1, min(SAMPLES, len(batches)))]
    plain = probe.with_weights({})
    wanted = [plain(batch.feed) for batch in few]
    offers = []
    for matrix in progress.track(matrices, "choosing grids", len(matrices)):
        hessian = hessians.get(matrix.name)
        errors = {grid: _error(matrix, hessian, grid, symmetric=symmetric) for grid in GRIDS}
        bits, size = TRIED
        rounded = round_blocks(
            matrix.weight, bits=bits, block_size=size, symmetric=symmetric, importance=_importance(hessian)
        )
        run = probe.with_weights({matrix.name: rounded.dequantize()})
        loss = sum(_lost_share(run(batch.feed), whole) for batch, whole in zip(few, wanted, strict=True))
        scale = loss / errors[TRIED] if errors[TRIED] else 0.0
        offers.append(
            [
                Choice(
                    bits=bits,
                    block_size=size,
                    size_bytes=matrix_bytes(matrix, bits, size, symmetric=symmetric),
                    loss=scale * error / len(few),
                )
                for (bits, size), error in errors.items()
            ]
        )
    chosen = choose_within(offers, max_bytes)
    return {matrix.name: choice for matrix, choice in zip(matrices, chosen, strict=True)}


def matrix_bytes(matrix: Matrix, bits: int, block_size: int, *, symmetric: bool) -> int:
    """What ``matrix`` takes in memory; a table's scales are float16 if no linear layer shares them."""
    rows, width = matrix.weight.shape
    scale_bytes = 4 if matrix.linears else 2
    filling = 0 if matrix.linears else count_blocks(width, block_size) * block_size - width  # a table has none
    size = stored_bytes(rows, width, bits=bits, block_size=block_size, symmetric=symmetric, scale_bytes=scale_bytes)
    return int(size - rows * filling * bits // 8)


def _error(matrix: Matrix, hessian: npt.NDArray[np.float64] | None, grid: tuple[int, int], *, symmetric: bool) -> float:
    """The output error of a layer, or the squared one of a table, at the nearest levels.

    Of many rows it looks at some, the same ones for all grids.
    """
    bits, size = grid
    weight = matrix.weight[:: max(1, len(matrix.weight) // ROWS)]
    rounded = round_blocks(
        weight, bits=bits, block_size=size, symmetric=symmetric, importance=_importance(hessian)
    ).dequantize()
    if hessian is None:
        return float(np.square(weight - rounded, dtype=np.float64).sum())
    return hessian_error(weight, rounded, hessian)


def _importance(hessian: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64] | None:
    if hessian is None:
        return None
    diagonal = np.diag(hessian)
    mean = float(diagonal.mean())
    return diagonal + 1e-3 * mean if mean > 0 else None


def _lost_share(found: Feed, wanted: Feed) -> float:
    """The squared error of a run's outputs over their energy."""
    error = sum(float(np.square(found[name] - wanted[name], dtype=np.float64).sum()) for name in wanted)
    power = sum(float(np.square(wanted[name], dtype=np.float64).sum()) for name in wanted)
    return error / power if power else 0.0
