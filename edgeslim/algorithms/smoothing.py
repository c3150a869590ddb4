"""How a layer's input is quantized: its range, moving its spread into the weights, or a scale a token.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): X W = (X / s)(s W) with s_j = max|X_j|^a / max|W_j|^(1 - a), so that
an input channel with outliers no longer decides the scale of all the others. Differences: the strength a and the clip
of the input's range are searched for each layer, by the error of the layer's quantized output on sampled inputs; and
no smoothing (s = 1) is kept unless it is clearly worse, for s costs a multiplication at run time unless it is ``free``.
A row's error counts relative to the row's output: in a transformer one token a sequence is ten times larger than the
others, and the normalization behind the layer divides that away.

A scale a token (Yao et al. 2022, arXiv 2206.01861) follows each row's own largest value, so that the few tokens with
massive activations no longer decide the scale of all others, and the weights keep their spread. The zero point is
static: in the middle, or, where values have a near lower bound as behind a GELU, searched near the end, so that most of
the 256 integers serve the long side. A row whose own range would then cut off the bound takes a wider one.

Layout: inputs float32 [samples, in], weight float32 [in, out], s float32 [in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeslim.numerics import Affine, activation_affine, quantize_activation, quantize_weight

__all__ = ["MIDDLE", "Activation", "Smoothing", "round_input", "search_smoothing", "smoothing_scale"]

FloatArray = npt.NDArray[np.float32]

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
COARSE_CLIPS = (1.0, 0.7, 0.4)
COARSE_STRIDE = 3
"""The strength is found on every third row."""
NEARLY_BEST = 1.1
"""A range counts as good as the best up to this error: sampled rows seldom hold what the widest ranges are for."""
WORTH_IT = 0.8
"""Smoothing has to bring the squared error below this share of the best without it, where it isn't free."""
TOKEN_WORTH_IT = 0.5
"""A scale a token, which costs more, below this share of the best static one."""
HARMLESS = 5e-4
"""The relative error of a layer's output below which a static scale will do."""
MIDDLE = 128
LOW_ZERO_POINTS = (64, 32, 24, 16, 8)
LEAST_PEAK = 1e-6

Activation = Literal["static", "per_token", "auto"]


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """``scale`` divides the inputs and multiplies the weight's rows; ``None`` for none. ``error`` is relative.

    With ``least_peak`` rows are divided by their own peak before ``affine`` applies, and multiplied by it afterwards. A
    row's peak is its largest value (its largest magnitude, where the zero point is 128), but at least ``least_peak``.
    """

    scale: FloatArray | None
    affine: Affine
    strength: float
    error: float
    least_peak: float | None = None

    @property
    def per_token(self) -> bool:
        """Whether each row has a scale of its own."""
        return self.least_peak is not None


def smoothing_scale(inputs_max: npt.NDArray[Any], weight_max: npt.NDArray[Any], strength: float) -> FloatArray:
    """s, normalized to a geometric mean of 1; channels that are always zero get 1."""
    x, w = np.asarray(inputs_max, np.float64), np.asarray(weight_max, np.float64)
    used = (x > 0) & (w > 0)
    scale = np.ones_like(x)
    scale[used] = x[used] ** strength / w[used] ** (1 - strength)
    scale[used] /= np.exp(np.log(scale[used]).mean()) if used.any() else 1.0
    return np.clip(scale, 1e-4, 1e4).astype(np.float32)


def round_input(inputs: FloatArray, site: Smoothing) -> FloatArray:
    """The values that uint8 leaves of ``inputs`` [n, in], smoothed where ``site`` says so."""
    smoothed = inputs if site.scale is None else inputs / site.scale
    zero = np.float32(site.affine.zero_point)
    peak: Any = 1
    if site.least_peak is not None:
        measured = np.abs(smoothed) if site.affine.zero_point == MIDDLE else smoothed
        peak = np.maximum(measured.max(axis=-1, keepdims=True), np.float32(site.least_peak))
        smoothed = smoothed * (1 / peak)
    integers = quantize_activation(smoothed, site.affine).astype(np.float32) - zero
    return np.asarray(integers * np.float32(site.affine.scale) * peak, np.float32)


def search_smoothing(
    inputs: FloatArray,
    weights: Sequence[FloatArray],
    inputs_max: npt.NDArray[Any],
    *,
    symmetric: bool,
    allowed: bool = True,
    free: bool = False,
    activation: Activation = "static",
    extremes: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> Smoothing:
    """The form with the least squared output error over all ``weights`` that share the inputs.

    ``inputs_max`` is max|X_j| over all of the calibration data, [in], and ``extremes`` are its lowest and highest
    values, [in] each; ``inputs`` are sampled rows of it, whose extremes are taken where none are given.
    """
    if extremes is None:
        extremes = inputs.min(axis=0), inputs.max(axis=0)
    search = _Search(inputs, np.concatenate(weights, axis=1), np.asarray(inputs_max), extremes, symmetric=symmetric)
    if activation == "per_token":
        return search.best_token()
    best = search.best_static(0.0, CLIPS)
    if allowed:
        sample = _Search(inputs[::COARSE_STRIDE], search.weight, search.inputs_max, extremes, symmetric=symmetric)
        coarse = min((sample.best_static(strength, COARSE_CLIPS) for strength in STRENGTHS), key=_error)
        smoothed = search.best_static(coarse.strength, CLIPS)
        if smoothed.error < (1.0 if free else WORTH_IT) * best.error:
            best = smoothed
    if activation == "auto":
        token = search.best_token()
        if best.error > HARMLESS and token.error < TOKEN_WORTH_IT * best.error:
            return token
    return best


class _Search:
    """Output errors of one layer, or several that share inputs, under forms of their inputs."""

    def __init__(
        self,
        inputs: FloatArray,
        weight: FloatArray,
        inputs_max: npt.NDArray[Any],
        extremes: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        *,
        symmetric: bool,
    ) -> None:
        self.inputs, self.weight, self.inputs_max, self.symmetric = inputs, weight, inputs_max, symmetric
        self.low, self.high = extremes
        self.wanted = inputs @ weight
        self.weight_max = np.abs(weight).max(axis=1)
        self.rounded = quantize_weight(weight, axis=1).dequantize(1)
        powers = np.square(self.wanted, dtype=np.float64).sum(axis=1)
        typical = float(np.median(powers)) or float(powers.mean()) or 1.0
        self.counts = 1 / (powers + typical)
        self.power = float(self.counts @ powers) or 1.0

    def best_static(self, strength: float, clips: Sequence[float]) -> Smoothing:
        """The widest of the nearly best ranges at one strength of smoothing, 0 for none."""
        scale, rounded = None, self.rounded
        if strength > 0:
            scale = smoothing_scale(self.inputs_max, self.weight_max, strength)
            rounded = quantize_weight(self.weight * scale[:, None], axis=1).dequantize(1)
        divisor = 1 if scale is None else scale
        low, high = float((self.low / divisor).min()), float((self.high / divisor).max())
        found = []
        for clip in clips:
            affine = activation_affine(low * clip, high * clip, symmetric=self.symmetric)
            site = Smoothing(scale=scale, affine=affine, strength=strength, error=0.0)
            found.append(self._judge(site, rounded))
        least = min(found, key=_error).error
        return next(site for site in found if site.error <= NEARLY_BEST * least)

    def best_token(self) -> Smoothing:
        """A scale a token at the best zero point; the least of all values always fits."""
        lowest = float(self.low.min())
        forms = []
        for zero in (MIDDLE,) if self.symmetric or lowest >= 0 else (MIDDLE, *LOW_ZERO_POINTS):
            levels = 127 if zero == MIDDLE else 255 - zero
            least = LEAST_PEAK if zero == MIDDLE else max(-lowest * levels / zero, LEAST_PEAK)
            affine = Affine(scale=1 / levels, zero_point=zero)
            site = Smoothing(scale=None, affine=affine, strength=0.0, error=0.0, least_peak=float(np.float32(least)))
            forms.append(self._judge(site, self.rounded))
        return min(forms, key=_error)

    def _judge(self, site: Smoothing, rounded: FloatArray) -> Smoothing:
        wrong = np.square(round_input(self.inputs, site) @ rounded - self.wanted, dtype=np.float64).sum(axis=1)
        return replace(site, error=float(self.counts @ wrong) / self.power)


def _error(site: Smoothing) -> float:
    return site.error
