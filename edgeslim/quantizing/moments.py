"""First and second moments of layers' inputs, summed over calibration data in memory that doesn't grow with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError

__all__ = ["MomentSum", "Moments", "channel_rows", "collect_moments"]

TILE_ROWS = 2048


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


class MomentSum:
    """Adds rows up to moments. Products are float32, of at least some thousand rows, and added up in float64."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._sum: Moments | None = None

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Adds ``rows`` [rows, channels].

        Raises:
            BadInputError: a value isn't finite.
        """
        if not np.isfinite(rows).all():
            raise BadInputError(
                f"calibration: activation {self._name}",
                "a NaN or infinite value",
                expected="finite activations on calibration data",
            )
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= TILE_ROWS:
            self._flush()

    def result(self) -> Moments:
        """The moments of all rows; there must have been some."""
        if self._waiting:
            self._flush()
        assert self._sum is not None, "no rows"
        return self._sum

    def _flush(self) -> None:
        rows, self._waiting = np.concatenate(self._waiting), []
        product, total, count = (rows.T @ rows).astype(np.float64), rows.sum(axis=0, dtype=np.float64), len(rows)
        if self._sum is not None:
            known = self._sum
            product, total, count = known.second + product, known.total + total, known.count + count
        self._sum = Moments(second=product, total=total, count=count)


def collect_moments(
    run: Runner,
    names: Collection[str],
    batches: Sequence[Batch],
    *,
    progress: Progress,
    rows: Callable[[str, Mapping[str, npt.NDArray[Any]]], Iterable[npt.NDArray[np.float32]]] | None = None,
) -> dict[str, Moments]:
    """The moments of each of ``names``: tensors that ``run`` gives or takes, the last axis their channels.

    With ``rows`` a name may be anything: ``rows(name, values)`` gives its rows out of a batch's values.

    Raises:
        BadInputError: there are no batches, or a value isn't finite.
    """
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    sums = {name: MomentSum(name.partition("|")[0]) for name in names}
    for batch in progress.track(batches, "second moments"):
        values = {**batch.feed, **run(batch.feed)}
        for name, found in sums.items():
            for part in [channel_rows(values[name])] if rows is None else rows(name, values):
                found.add(part)
    return {name: found.result() for name, found in sums.items()}


def channel_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``values`` as rows of their last axis."""
    return np.asarray(values, np.float32).reshape(-1, values.shape[-1])
