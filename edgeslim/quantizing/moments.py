"""First and second moments of layers' inputs, summed over calibration data in memory that doesn't grow with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError

__all__ = ["Moments", "collect_moments"]

TILE_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of ``count`` rows x: ``second`` Σ x xᵀ, float64 [channels, channels], and ``total`` Σ x, [channels]."""

    second: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    count: int

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """The mean row."""
        return self.total / self.count

    def centered(self) -> npt.NDArray[np.float64]:
        """Σ (x - mean)(x - mean)ᵀ: what counts where a bias makes up for an error that all rows share."""
        return self.second - np.outer(self.total, self.mean)

    def divided(self, scale: npt.NDArray[Any]) -> Moments:
        """The moments of x / ``scale``."""
        return Moments(second=self.second / np.outer(scale, scale), total=self.total / scale, count=self.count)


def collect_moments(
    run: Runner, names: Collection[str], batches: Sequence[Batch], *, progress: Progress
) -> dict[str, Moments]:
    """The moments of each of the tensors ``names``, which ``run`` gives or takes.

    The last axis is the channels. Products are float32, of at most some thousand rows, and added up in float64.

    Raises:
        BadInputError: there are no batches, or a value isn't finite.
    """
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    sums: dict[str, Moments] = {}
    waiting: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}

    def add(name: str) -> None:
        rows = np.concatenate(waiting[name])
        waiting[name] = []
        product, total, count = (rows.T @ rows).astype(np.float64), rows.sum(axis=0, dtype=np.float64), len(rows)
        if name in sums:
            known = sums[name]
            product, total, count = known.second + product, known.total + total, known.count + count
        sums[name] = Moments(second=product, total=total, count=count)

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
