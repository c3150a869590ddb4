"""Second moments of layers' inputs, summed over calibration data in memory that doesn't grow with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError

__all__ = ["collect_moments"]

TILE_ROWS = 1024


def collect_moments(
    run: Runner, names: Collection[str], batches: Sequence[Batch], *, progress: Progress
) -> dict[str, npt.NDArray[np.float64]]:
    """XᵀX, float64 [channels, channels], of each of the tensors ``names``, which ``run`` gives or takes.

    The last axis is the channels. Products are float32, of at most some thousand rows, and added up in float64.

    Raises:
        BadInputError: there are no batches, or a value isn't finite.
    """
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    sums: dict[str, npt.NDArray[np.float64]] = {}
    waiting: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}

    def add(name: str) -> None:
        rows = np.concatenate(waiting[name])
        waiting[name] = []
        product = (rows.T @ rows).astype(np.float64)
        sums[name] = sums[name] + product if name in sums else product

    for batch in progress.track(batches, "second moments"):
        values = {**batch.feed, **run(batch.feed)}
        for name in names:
            waiting[name].append(_rows(values[name], name))
            if sum(map(len, waiting[name])) >= TILE_ROWS:
                add(name)
    for name in names:
        if waiting[name]:
            add(name)
    return sums


def _rows(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
    if not np.isfinite(rows).all():
        raise BadInputError(
            f"calibration: activation {name}",
            "a NaN or infinite value",
            expected="finite activations on calibration data",
        )
    return rows
