"""The arithmetic of quantization on NumPy arrays: no models, no files.

Uniform quantization maps a float x to an integer q = round(x / scale) + zero_point, clipped to the integer type's range
(Jacob et al. 2018, arXiv 1712.05877). *Symmetric* fixes the zero point in the middle of the range, *affine* lets it
follow the data. Ranges come from a streaming histogram, so calibration needs the same memory for ten samples as for a
million, and the order of the samples doesn't matter.

Differences from the literature: entropy calibration (Migacz, "8-bit inference with TensorRT", 2017) is run on the clip
*fraction* of the two-sided range, not on a one-sided threshold, so that it serves affine ranges too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Affine",
    "Calibration",
    "Histogram",
    "QuantizedWeight",
    "activation_affine",
    "choose_range",
    "quantization_error",
    "quantize_activation",
    "quantize_weight",
]

Calibration = Literal["minmax", "percentile", "entropy", "mse"]
FloatArray = npt.NDArray[np.float32]

BINS = 8192
CLIP_FRACTIONS = np.linspace(0.05, 1.0, 96)


class Histogram:
    """Counts of values in 8192 equal bins over [-2**k, 2**k); k grows with the data.

    The range only ever doubles, and doubling merges pairs of bins exactly, so the counts don't depend on the order in
    which the data came. ``low`` and ``high`` are the exact extremes seen (0 and 0 before any data).
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)
        self._empty = True

    def update(self, values: npt.NDArray[Any]) -> None:
        """Adds all ``values``, of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = np.asarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a NaN or infinite value")
        self.low = low if self._empty else min(self.low, low)
        self.high = high if self._empty else max(self.high, high)
        self._empty = False
        self._grow(max(abs(low), abs(high)))
        if self.limit == 0.0:
            self.counts[BINS // 2] += flat.size
            return
        index = np.floor((flat.astype(np.float64) + self.limit) * (BINS / (2 * self.limit))).astype(np.int64)
        self.counts += np.bincount(np.minimum(index, BINS - 1), minlength=BINS)

    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each bin, float64 [8192]."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * (2 * self.limit / BINS) - self.limit

    def _grow(self, magnitude: float) -> None:
        if magnitude == 0.0:
            return
        if self.limit == 0.0:  # only zeros so far: they stay in the bin that starts at zero
            self.limit = float(2.0 ** np.ceil(np.log2(magnitude)))
        while self.limit < magnitude:
            merged = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.limit *= 2


def choose_range(
    histogram: Histogram, method: Calibration, *, symmetric: bool, percentile: float = 99.99, levels: int = 256
) -> tuple[float, float]:
    """The range that is mapped onto ``levels`` integers; what lies outside is clipped.

    ``minmax`` takes all of it. ``percentile`` leaves out (100 - percentile) % of the values, half of them on each side.
    ``mse`` and ``entropy`` shrink the range by the fraction (of 96 between 0.05 and 1) that gives the least expected
    squared error, or the least Kullback-Leibler divergence from the unquantized distribution.
    Returns (low, high) with low <= 0 <= high.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if method == "minmax" or low == high:
        return low, high
    if method == "percentile":
        return _percentile_range(histogram, low, high, percentile, symmetric=symmetric)
    cost = _squared_error if method == "mse" else _divergence
    costs = [cost(histogram, low * fraction, high * fraction, levels) for fraction in CLIP_FRACTIONS]
    best = CLIP_FRACTIONS[len(costs) - 1 - int(np.argmin(costs[::-1]))]  # the widest of equals
    return float(low * best), float(high * best)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """q = round(x / scale) + zero_point, in uint8."""

    scale: float
    zero_point: int


def activation_affine(low: float, high: float, *, symmetric: bool) -> Affine:
    """Scale and zero point of a uint8 tensor for values in [low, high]; zero is always exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(-low, high) / 127 if symmetric else (high - low) / 255
    if scale < float(np.finfo(np.float32).tiny):  # nothing but zeros
        scale = 1.0
    zero_point = 128 if symmetric else int(np.clip(np.rint(-low / scale), 0, 255))
    return Affine(scale=scale, zero_point=zero_point)


def quantization_error(histogram: Histogram, affine: Affine) -> float:
    """The share of the values' energy that uint8 by ``affine`` loses: 0 for none, and for nothing but zeros."""
    if histogram.limit == 0.0:
        return 0.0
    centers = histogram.centers()
    integers = np.clip(np.rint(centers / affine.scale) + affine.zero_point, 0, 255)
    lost = (centers - (integers - affine.zero_point) * affine.scale) ** 2
    energy = float(np.dot(histogram.counts, centers**2))
    return float(np.dot(histogram.counts, lost)) / energy if energy else 0.0


def quantize_activation(values: FloatArray, affine: Affine) -> npt.NDArray[np.uint8]:
    """The uint8 values that QuantizeLinear gives (ties to even)."""
    scaled = np.rint(values / np.float32(affine.scale)) + affine.zero_point
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """``values`` int8 in the weight's shape; ``scale`` float32 and ``zero_point`` int8, [channels] or [] a tensor.

    ``zero_point`` is ``None`` for symmetric quantization.
    """

    values: npt.NDArray[np.int8]
    scale: FloatArray
    zero_point: npt.NDArray[np.int8] | None

    def dequantize(self, axis: int | None) -> FloatArray:
        """The float32 weight that the integers stand for."""
        zero = np.int8(0) if self.zero_point is None else _along(self.zero_point, self.values.ndim, axis)
        shifted = self.values.astype(np.float32) - np.asarray(zero, np.float32)
        return shifted * np.asarray(_along(self.scale, self.values.ndim, axis), np.float32)


def quantize_weight(
    weight: npt.NDArray[Any], *, axis: int | None, symmetric: bool = True, scale: FloatArray | None = None
) -> QuantizedWeight:
    """Rounds a float weight to int8, with a scale for each index of ``axis`` (``None``: one for the tensor).

    Symmetric values use -127 to 127. A channel of zeros gets scale 1. A ``scale`` that is given, float32 [channels] or
    [] for the tensor, is taken instead of the smallest that clips nothing; then the rounding is symmetric.
    """
    if scale is not None:
        steps = _along(np.asarray(scale, np.float32), np.ndim(weight), axis)
        integers = np.clip(np.rint(np.asarray(weight, np.float32) / steps), -127, 127).astype(np.int8)
        return QuantizedWeight(values=integers, scale=np.asarray(scale, np.float32), zero_point=None)
    values = np.asarray(weight, np.float32)
    others = None if axis is None else tuple(dim for dim in range(values.ndim) if dim != axis % values.ndim)
    high = np.maximum(values.max(axis=others, keepdims=True), 0)
    low = np.minimum(values.min(axis=others, keepdims=True), 0)
    shape = () if axis is None else (values.shape[axis],)
    if symmetric:
        scale = np.maximum(high, -low) / np.float32(127)
        scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
        rounded = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        return QuantizedWeight(values=rounded, scale=scale.reshape(shape), zero_point=None)
    scale = (high - low) / np.float32(255)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    zero = np.clip(np.rint(-low / scale) - 128, -128, 127)
    rounded = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
    return QuantizedWeight(values=rounded, scale=scale.reshape(shape), zero_point=zero.astype(np.int8).reshape(shape))


def _along(values: npt.NDArray[Any], ndim: int, axis: int | None) -> npt.NDArray[Any]:
    if axis is None:
        return values
    return values.reshape([-1 if dim == axis % ndim else 1 for dim in range(ndim)])


def _percentile_range(
    histogram: Histogram, low: float, high: float, percentile: float, *, symmetric: bool
) -> tuple[float, float]:
    edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1)
    total = histogram.counts.sum()
    outside = (1 - percentile / 100) * total
    if symmetric:
        folded = (histogram.counts[: BINS // 2][::-1] + histogram.counts[BINS // 2 :]).cumsum()
        bound = float(edges[BINS // 2 + 1 + int(np.searchsorted(folded, total - outside))])
        bound = min(bound, high)
        return -bound, bound
    below = histogram.counts.cumsum()
    first = float(edges[int(np.searchsorted(below, outside / 2, side="right"))])
    last = float(edges[1 + int(np.searchsorted(below, total - outside / 2))])
    return min(max(first, low), 0.0), max(min(last, high), 0.0)


def _squared_error(histogram: Histogram, low: float, high: float, levels: int) -> float:
    centers = histogram.centers()
    step = (high - low) / (levels - 1)
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(centers / step) + zero, 0, levels - 1) - zero) * step
    return float(np.dot(histogram.counts, (centers - rounded) ** 2))


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped distribution from its quantized form, in nats."""
    centers = histogram.centers()
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return float("inf")
    kept = histogram.counts[inside].astype(np.float64)
    clipped = kept.copy()
    first, last = int(np.argmax(inside)), BINS - int(np.argmax(inside[::-1]))
    clipped[0] += histogram.counts[:first].sum()
    clipped[-1] += histogram.counts[last:].sum()
    level = np.minimum(((centers[inside] - low) * (levels / (high - low))).astype(np.int64), levels - 1)
    mass = np.bincount(level, kept, levels)
    filled = np.bincount(level, kept > 0, levels)
    spread = np.where(kept > 0, (mass / np.maximum(filled, 1))[level], 0.0)
    total = spread.sum()
    if total == 0:
        return float("inf")
    p, q = clipped / clipped.sum(), spread / total
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))
