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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.numerics import Affine, activation_affine, quantize_weight

__all__ = ["MIDDLE", "Activation", "Smoothing", "round_input", "search_smoothing", "smoothing_scale"]

FloatArray = npt.NDArray[np.float32]

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
COARSE_CLIPS = (1.0, 0.7, 0.4)
COARSE_STRIDE = 3
COARSE_COLUMNS = 256
"""The strength is found on every third row, and on so many outputs or up to twice as many."""
WORTH_A_LOOK = 1.5
"""Forms whose error there is within this factor of the least are tried on all rows and outputs."""
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


class Forms(Protocol):
    """Gives the forms of an input that is divided by ``scale``; some of them where a ``coarse`` look will do."""

    def __call__(self, scale: FloatArray | None, *, coarse: bool) -> Iterator[Smoothing]: ...


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
    steps: Any = np.float32(site.affine.scale)
    if site.least_peak is not None:
        measured = np.abs(smoothed) if site.affine.zero_point == MIDDLE else smoothed
        steps = steps * np.maximum(measured.max(axis=-1, keepdims=True), np.float32(site.least_peak))
    integers = np.rint(smoothed / steps)
    return np.asarray(np.clip(integers, -zero, 255 - zero) * steps, np.float32)


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
    strengths = STRENGTHS if allowed else ()
    if activation == "per_token":
        return search.best(search.token_forms, strengths, 1.0 if free else WORTH_IT)
    best = search.best(search.static_forms, strengths, 1.0 if free else WORTH_IT)
    if activation == "auto" and best.error > HARMLESS:
        token = search.best(search.token_forms, (), 1.0)
        if token.error < TOKEN_WORTH_IT * best.error:
            return token
    return best


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Inputs and weights to judge by: ``wanted`` is their product, ``counts`` weighs its rows."""

    inputs: FloatArray
    weight: FloatArray
    wanted: FloatArray
    counts: npt.NDArray[np.float64]
    power: float

    @classmethod
    def of(cls, inputs: FloatArray, weight: FloatArray) -> _Layer:
        wanted = inputs @ weight
        powers = np.square(wanted, dtype=np.float64).sum(axis=1)
        typical = float(np.median(powers)) or float(powers.mean()) or 1.0
        counts = 1 / (powers + typical)
        return cls(inputs=inputs, weight=weight, wanted=wanted, counts=counts, power=float(counts @ powers) or 1.0)

    def judge(self, site: Smoothing, rounded: FloatArray) -> Smoothing:
        wrong = round_input(self.inputs, site) @ rounded
        wrong -= self.wanted
        return replace(site, error=float(self.counts @ np.einsum("ij,ij->i", wrong, wrong)) / self.power)


class _Search:
    """Output errors of one layer, or several that share inputs, under forms of their inputs.

    A few rows and columns find the strength of smoothing and the forms worth a closer look; all decide.
    """

    def __init__(
        self,
        inputs: FloatArray,
        weight: FloatArray,
        inputs_max: npt.NDArray[Any],
        extremes: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        *,
        symmetric: bool,
    ) -> None:
        self.whole = _Layer.of(inputs, weight)
        columns = max(1, weight.shape[1] // COARSE_COLUMNS)
        self.part = _Layer.of(inputs[::COARSE_STRIDE], np.ascontiguousarray(weight[:, ::columns]))
        self.inputs_max, self.symmetric = inputs_max, symmetric
        self.low, self.high = extremes
        self.weight_max = np.abs(weight).max(axis=1)

    def best(self, forms: Forms, strengths: Sequence[float], worth_it: float) -> Smoothing:
        """The best of ``forms`` without smoothing, or with it if that brings the error below ``worth_it`` of that."""
        best = self._finish(forms, 0.0)
        if not strengths:
            return best
        coarse = min((self._try(forms, strength) for strength in strengths), key=_error)
        smoothed = self._finish(forms, coarse.strength)
        return smoothed if smoothed.error < worth_it * best.error else best

    def static_forms(self, scale: FloatArray | None, *, coarse: bool) -> Iterator[Smoothing]:
        """One scale for all rows, from wide ranges to narrow ones."""
        divisor = 1 if scale is None else scale
        low, high = float((self.low / divisor).min()), float((self.high / divisor).max())
        for clip in COARSE_CLIPS if coarse else CLIPS:
            affine = activation_affine(low * clip, high * clip, symmetric=self.symmetric)
            yield Smoothing(scale=scale, affine=affine, strength=0.0, error=0.0)

    def token_forms(self, scale: FloatArray | None, *, coarse: bool) -> Iterator[Smoothing]:
        """A scale a row, at several zero points; the least of all values always fits."""
        lowest = float((self.low / (1 if scale is None else scale)).min())
        for zero in (MIDDLE,) if coarse or self.symmetric or lowest >= 0 else (MIDDLE, *LOW_ZERO_POINTS):
            levels = 127 if zero == MIDDLE else 255 - zero
            least = LEAST_PEAK if zero == MIDDLE else max(-lowest * levels / zero, LEAST_PEAK)
            affine = Affine(scale=1 / levels, zero_point=zero)
            yield Smoothing(scale=scale, affine=affine, strength=0.0, error=0.0, least_peak=float(np.float32(least)))

    def _scale(self, strength: float) -> FloatArray | None:
        """The vector that divides the inputs; 0 for none."""
        return smoothing_scale(self.inputs_max, self.weight_max, strength) if strength > 0 else None

    def _try(self, forms: Forms, strength: float) -> Smoothing:
        """About the best form at ``strength``."""
        scale = self._scale(strength)
        rounded = _round_weight(self.part.weight, scale)
        found = min((self.part.judge(form, rounded) for form in forms(scale, coarse=True)), key=_error)
        return replace(found, strength=strength)

    def _finish(self, forms: Forms, strength: float) -> Smoothing:
        """The best form at ``strength``; of nearly equal ranges, the widest."""
        scale = self._scale(strength)
        offered = list(forms(scale, coarse=False))
        rounded = _round_weight(self.part.weight, scale)
        rough = [self.part.judge(form, rounded).error for form in offered]
        rounded = _round_weight(self.whole.weight, scale)
        found = [
            self.whole.judge(form, rounded)
            for form, error in zip(offered, rough, strict=True)
            if error <= WORTH_A_LOOK * min(rough)
        ]
        best = min(found, key=_error)
        if not best.per_token:
            best = next(site for site in found if site.error <= NEARLY_BEST * best.error)
        return replace(best, strength=strength)


def _round_weight(weight: FloatArray, scale: FloatArray | None) -> FloatArray:
    return quantize_weight(weight if scale is None else weight * scale[:, None], axis=1).dequantize(1)


def _error(site: Smoothing) -> float:
    return site.error
