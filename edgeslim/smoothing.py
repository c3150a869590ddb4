"""Moving the spread of a layer's inputs into its weights before both are quantized.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): X W = (X / s)(s W) with s_j = max|X_j|^a / max|W_j|^(1 - a), so that
an input channel with outliers no longer decides the scale of all the others. Differences: the strength a and the clip
of the input's range are searched for each layer, by the error of the layer's quantized output on sampled inputs; and no
smoothing (s = 1) is kept unless it is clearly worse, for s costs a multiplication at run time.

Layout: inputs float32 [samples, in], weight float32 [in, out], s float32 [in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.numerics import Affine, activation_affine, quantize_activation, quantize_weight

__all__ = ["Smoothing", "search_smoothing", "smoothing_scale"]

FloatArray = npt.NDArray[np.float32]

STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
COARSE_CLIPS = (1.0, 0.7, 0.5)
WORTH_IT = 0.8
"""Smoothing has to bring the squared error below this share of the best without it."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """``scale`` divides the inputs and multiplies the weight's rows; ``None`` for none. ``error`` is relative."""

    scale: FloatArray | None
    affine: Affine
    strength: float
    error: float


def smoothing_scale(inputs_max: npt.NDArray[Any], weight_max: npt.NDArray[Any], strength: float) -> FloatArray:
    """s, normalized to a geometric mean of 1; channels that are always zero get 1."""
    x, w = np.asarray(inputs_max, np.float64), np.asarray(weight_max, np.float64)
    used = (x > 0) & (w > 0)
    scale = np.ones_like(x)
    scale[used] = x[used] ** strength / w[used] ** (1 - strength)
    scale[used] /= np.exp(np.log(scale[used]).mean()) if used.any() else 1.0
    return np.clip(scale, 1e-4, 1e4).astype(np.float32)


def search_smoothing(
    inputs: FloatArray,
    weights: Sequence[FloatArray],
    inputs_max: npt.NDArray[Any],
    *,
    symmetric: bool,
    allowed: bool = True,
) -> Smoothing:
    """The strength and clip with the least squared output error over all ``weights`` that share the inputs.

    ``inputs_max`` is max|X_j| over all of the calibration data, [in]; ``inputs`` are sampled rows of it.
    """
    weight = np.concatenate(weights, axis=1)
    wanted = inputs @ weight
    power = float(np.square(wanted, dtype=np.float64).sum()) or 1.0
    weight_max = np.abs(weight).max(axis=1)

    def tried(strength: float, clips: Sequence[float]) -> Smoothing:
        scale = None if strength == 0 else smoothing_scale(inputs_max, weight_max, strength)
        smoothed = inputs if scale is None else inputs / scale
        moved = weight if scale is None else weight * scale[:, None]
        rounded = quantize_weight(moved, axis=1).dequantize(1)
        low, high = float(smoothed.min()), float(smoothed.max())
        found = []
        for clip in clips:
            affine = activation_affine(low * clip, high * clip, symmetric=symmetric)
            back = quantize_activation(smoothed, affine).astype(np.float32) - np.float32(affine.zero_point)
            error = (back @ rounded) * np.float32(affine.scale) - wanted
            relative = float(np.square(error, dtype=np.float64).sum()) / power
            found.append(Smoothing(scale=scale, affine=affine, strength=strength, error=relative))
        return min(found, key=lambda item: item.error)

    plain = tried(0.0, CLIPS)
    if not allowed:
        return plain
    coarse = min((tried(strength, COARSE_CLIPS) for strength in STRENGTHS), key=lambda item: item.error)
    best = tried(coarse.strength, CLIPS)
    return best if best.error < WORTH_IT * plain.error else plain
