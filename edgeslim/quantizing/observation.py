"""What calibration learns of a layer's inputs, in memory that doesn't grow with the number of samples.

One pass over the calibration data keeps, for each observed tensor, a streaming histogram, the largest magnitude of each
channel, and a bounded, seeded choice of rows; a second one adds up the Hessian of its quantized values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.smoothing import Smoothing, round_input
from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError
from edgeslim.numerics import Histogram

__all__ = ["Observed", "add_hessians", "observe"]

ROWS = 512
SUMMED_ROWS = 1024


@dataclass(kw_only=True)
class Observed:
    """One tensor: ``low`` and ``high`` are its channels' extremes, float32 [channels], ``None`` before any data.

    ``rows`` hold sampled rows, float32 [n, channels].
    """

    histogram: Histogram = field(default_factory=Histogram)
    low: npt.NDArray[np.float32] | None = None
    high: npt.NDArray[np.float32] | None = None
    chosen: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        """The sampled rows, at most 512 and one a batch."""
        return np.concatenate(self.chosen)

    @property
    def maximum(self) -> npt.NDArray[np.float32] | None:
        """max|X_j|, float32 [channels]."""
        return None if self.low is None or self.high is None else np.maximum(-self.low, self.high)

    def add_rows(self, values: npt.NDArray[Any], count: int, random: np.random.Generator) -> None:
        """Adds a tensor whose last axis is the channels, of which ``count`` rows are kept.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
        if not len(flat):
            return
        low, high = flat.min(axis=0), flat.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("a NaN or infinite value")
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        if count or not self.chosen:
            self.chosen.append(flat[random.permutation(len(flat))[:count]])


def observe(
    run: Runner,
    names: Sequence[str],
    batches: Sequence[Batch],
    *,
    rows: Collection[str],
    seed: int,
    progress: Progress,
    histograms: Collection[str] | None = None,
) -> dict[str, Observed]:
    """Runs ``batches`` and keeps what is seen of the tensors ``names``, which ``run`` gives or takes.

    Rows and channels are those of the last axis, and are kept for the tensors in ``rows`` alone; histograms for those
    in ``histograms``, or for all.

    Raises:
        BadInputError: there are no batches, or a value isn't finite.
    """
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    random = np.random.default_rng(seed)
    count = -(-ROWS // len(batches))
    seen = {name: Observed() for name in names}
    for batch in progress.track(batches, "calibrating"):
        values = {**batch.feed, **run(batch.feed)}
        for name, observed in seen.items():
            try:
                # Past the bound, batches no longer add rows: what came first is as good as what comes last.
                if histograms is None or name in histograms:
                    observed.histogram.update(values[name])
                if name in rows:
                    observed.add_rows(values[name], count if len(observed.chosen) < ROWS else 0, random)
            except ValueError as error:
                raise BadInputError(
                    f"calibration: activation {name}", str(error), expected="finite activations on calibration data"
                ) from error
    return seen


def add_hessians(
    run: Runner,
    sites: Mapping[str, Smoothing],
    batches: Sequence[Batch],
    *,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float64]]:
    """XᵀX of each site's quantized inputs, float64 [channels, channels], over all ``batches``."""
    totals: dict[str, npt.NDArray[np.float64]] = {}
    waiting: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in sites}

    def add(name: str) -> None:
        rows = np.concatenate(waiting[name])
        waiting[name] = []
        product = (rows.T @ rows).astype(np.float64)
        totals[name] = totals[name] + product if name in totals else product

    for batch in progress.track(batches, "second moments"):
        values = {**batch.feed, **run(batch.feed)}
        for name, site in sites.items():
            flat = np.asarray(values[name], np.float32).reshape(-1, values[name].shape[-1])
            waiting[name].append(round_input(flat, site))
            if sum(map(len, waiting[name])) >= SUMMED_ROWS:
                add(name)
    for name in sites:
        if waiting[name]:
            add(name)
    return totals
