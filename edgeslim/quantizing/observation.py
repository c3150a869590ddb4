"""What calibration learns of a layer's inputs, in memory that doesn't grow with the number of samples.

One pass over the calibration data keeps, for each observed tensor, a streaming histogram, the largest magnitude of each
channel, and a bounded, seeded choice of rows; a second one adds up the Hessian of its quantized values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.smoothing import Smoothing, round_input
from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError
from edgeslim.numerics import Histogram

__all__ = ["Observed", "input_hessian", "observe"]

ROWS = 512
SUMMED_ROWS = 1024


@dataclass(kw_only=True)
class Observed:
    """One tensor: ``low`` and ``high`` are its channels' extremes, float32 [channels], ``None`` before any data.

    ``rows`` hold sampled rows, float32 [n, channels]; ``product`` is XᵀX over all ``count`` rows, float64.
    """

    histogram: Histogram = field(default_factory=Histogram)
    low: npt.NDArray[np.float32] | None = None
    high: npt.NDArray[np.float32] | None = None
    chosen: list[npt.NDArray[np.float32]] = field(default_factory=list)
    product: npt.NDArray[np.float64] | None = None
    count: int = 0
    waiting: list[npt.NDArray[np.float32]] = field(default_factory=list)

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
        flat = _rows(values)
        if not len(flat):
            return
        low, high = flat.min(axis=0), flat.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("a NaN or infinite value")
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        if count or not self.chosen:
            self.chosen.append(flat[random.permutation(len(flat))[:count]])

    def add_products(self, values: npt.NDArray[Any]) -> None:
        """Adds a tensor's rows to ``product``; some wait until they are many, for one multiplication is faster."""
        self.waiting.append(_rows(values))
        if sum(map(len, self.waiting)) >= SUMMED_ROWS:
            self.finish()

    def finish(self) -> None:
        """Adds the rows that still wait."""
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting)
        self.waiting.clear()
        product = (rows.T @ rows).astype(np.float64)
        self.product = product if self.product is None else self.product + product
        self.count += len(rows)


def _rows(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, values.shape[-1])


def observe(
    run: Runner,
    names: Sequence[str],
    batches: Sequence[Batch],
    *,
    rows: Collection[str],
    seed: int,
    progress: Progress,
    histograms: Collection[str] | None = None,
    products: Collection[str] = (),
) -> dict[str, Observed]:
    """Runs ``batches`` and keeps what is seen of the tensors ``names``, which ``run`` gives or takes.

    Rows and channels are those of the last axis, and are kept for the tensors in ``rows`` alone; histograms for those
    in ``histograms``, or for all; second moments for those in ``products``.

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
                if name in products:
                    observed.add_products(values[name])
                if name in rows:
                    observed.add_rows(values[name], count if len(observed.chosen) < ROWS else 0, random)
            except ValueError as error:
                raise BadInputError(
                    f"calibration: activation {name}", str(error), expected="finite activations on calibration data"
                ) from error
    for observed in seen.values():
        observed.finish()
    return seen


def input_hessian(observed: Observed, site: Smoothing) -> npt.NDArray[np.float64]:
    """About XᵀX of an input as ``site`` smooths, clips and rounds it, float64 [channels, channels].

    Without running the model again: clipping shrinks channels, and rounding adds noise that is independent from channel
    to channel; how much is seen on the sampled rows. GPTQ needs no more: on a sentence encoder the mean cosine is that
    of the exact product (0.9986 for 64 calibration texts).
    """
    assert observed.product is not None
    rows = observed.rows if site.scale is None else observed.rows / site.scale
    limited = rows if site.per_token else np.clip(rows, *_limits(site))
    before, after = (np.square(values, dtype=np.float64).sum(axis=0) for values in (rows, limited))
    factor = np.sqrt(np.divide(after, before, out=np.ones_like(before), where=before > 0))
    if site.scale is not None:
        factor = factor / site.scale
    noise = np.square(round_input(observed.rows, site) - limited, dtype=np.float64).mean(axis=0)
    found = observed.product * np.outer(factor, factor)
    found[np.diag_indices_from(found)] += observed.count * noise
    return np.asarray(found, np.float64)


def _limits(site: Smoothing) -> tuple[float, float]:
    """The lowest and highest value that the integers of ``site`` stand for."""
    affine = site.affine
    return -affine.zero_point * affine.scale, (255 - affine.zero_point) * affine.scale
