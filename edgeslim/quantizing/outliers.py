"""What makes a layer's input hard to quantize: outliers, and what smoothing does about them.

A few channels or tokens far above the rest decide the scale of a whole tensor, and leave few levels for everything else
(Dettmers et al. 2022, arXiv 2208.07339). Seen here by the largest magnitude over the 99.9th percentile of magnitudes,
and by the share of the energy that lies above that percentile. What it costs is the error of the layer's output with
weight and input in int8, before and after ``edgeslim.algorithms.smoothing``: relative root mean squares on sampled
rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.smoothing import search_smoothing
from edgeslim.core import Batch, Progress
from edgeslim.numerics import Histogram
from edgeslim.quantizing.observation import observe
from edgeslim.session import OrtRunner

__all__ = ["InputFacts", "measure_inputs", "measure_outliers"]


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """What an operator reads: ``outlier_ratio`` is the largest magnitude over the 99.9th percentile of magnitudes.

    ``outlier_energy`` is the share of energy above that percentile. ``int8_error`` and ``smoothed_error`` are those of
    the operator's output with weight and input in int8; ``None`` for what isn't a matrix product.
    """

    peak: float
    outlier_ratio: float
    outlier_energy: float
    int8_error: float | None
    smoothed_error: float | None
    strength: float | None


def measure_inputs(
    runner: OrtRunner,
    matrices: Mapping[str, Sequence[npt.NDArray[Any]]],
    batches: Sequence[Batch],
    *,
    seed: int,
    progress: Progress,
) -> dict[str, InputFacts]:
    """The tensors named in ``matrices``, which ``runner`` gives or takes, over all ``batches``.

    Their values are the weights [in, out] that multiply each; a tensor without any is looked at for outliers alone.
    """
    if not matrices:
        return {}
    computed = [name for name in matrices if name not in runner.inputs]
    seen = observe(
        lambda feed: runner.run_only(feed, computed),
        tuple(matrices),
        batches,
        rows={name for name, weights in matrices.items() if weights},
        seed=seed,
        progress=progress,
    )
    found = {}
    for name, weights in progress.track(matrices.items(), "smoothing", len(matrices)):
        histogram, maximum = seen[name].histogram, seen[name].maximum
        ratio, energy = measure_outliers(histogram)
        before = after = strength = None
        if weights and maximum is not None:
            rows = seen[name].rows
            plain = search_smoothing(rows, weights, maximum, symmetric=False, allowed=False)
            best = search_smoothing(rows, weights, maximum, symmetric=False)
            before, after, strength = math.sqrt(plain.error), math.sqrt(best.error), best.strength
        found[name] = InputFacts(
            peak=max(-histogram.low, histogram.high),
            outlier_ratio=ratio,
            outlier_energy=energy,
            int8_error=before,
            smoothed_error=after,
            strength=strength,
        )
    return found


def measure_outliers(histogram: Histogram) -> tuple[float, float]:
    """Largest magnitude over the 99.9th percentile of magnitudes, and the share of energy above that percentile."""
    half = len(histogram.counts) // 2
    folded = histogram.counts[:half][::-1] + histogram.counts[half:]
    centers = histogram.centers()[half:]
    energy = folded * centers**2
    if not energy.sum():
        return 1.0, 0.0
    place = int(np.searchsorted(folded.cumsum(), 0.999 * folded.sum()))
    bound = centers[place] + (centers[1] - centers[0]) / 2
    return max(-histogram.low, histogram.high) / float(bound), float(energy[place + 1 :].sum() / energy.sum())
