"""How coarse each channel's grid may be: equal slopes of error against bytes.

A channel's weights w are stored as integers of w / Δ and entropy-coded: a bit less for each doubling of Δ. To second
order the error of the model's output grows by G Δ² / 12 · Σ_j 1 / U_jj², where G is the mean squared gradient of the
output by what the channel makes, and U the Cholesky factor of the inverse Hessian of its inputs, by which GPTQ spreads
rounding errors. No byte can be moved from one channel to another with profit where all have the same error a weight::

    Δ_i = δ / sqrt(G_i · mean_j 1 / U_jj²)

That holds for channels with codes of their own, as the rows of an embedding table nearly have. The columns of a
MatMul's weight share one code, whose lengths grow about as |q|; so a coarser step saves most where a column's mean
magnitude m is large. The best steps are those with Δ_i³ proportional to m_i / (G_i · mean_j 1 / U_jj²), scaled so that
the tensor as a whole has the slope of all others. On random columns that takes a tenth off the error at equal bytes.

So one number δ sets the step of every channel of every tensor, and it is found from the bytes wanted. A channel's
integers must fit into int8, so its step is at least max|w| / 127: channels with outliers use all of their 8 bits.

Water-filling over Gaussian sources (Shannon 1959), with the sensitivities of optimal brain damage (LeCun et al. 1989).
A row of an embedding table is a channel whose G is the share of tokens that it has, and U belongs to the gradient's
covariance, since errors of one row are felt together.

Layout: weight [in, out], a step for each column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.gptq import RateTerm, round_gptq
from edgeslim.algorithms.rate import LEVELS, coded_bytes, snap_steps, symbol_bits

__all__ = ["GridTensor", "Rounded", "find_delta", "predict_bytes"]

BIT_SLOPE = 2 * math.log(2) / 12
"""The error, in squared steps, that one bit more would remove: the slope of Δ² / 12 at high rates."""
SAMPLED = 8
SHARED_POWER = 1 / 3
TOLERANCE = 5e-4
PRECISION = 1e-4
MIN_COLUMNS = 96
MIN_WEIGHTS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """``values`` int8 [in, out] and ``steps`` float32 [out]: the weight is nearly their product."""

    values: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GridTensor:
    """A weight [in, out] whose columns get steps of their own; ``upper`` is U [in, in], ``gradients`` G [out].

    ``stored_by_column`` says that the file holds it transposed, a column after the other, as embedding tables are;
    the coder gives such columns classes with codes of their own.
    """

    name: str
    weight: npt.NDArray[np.float32]
    upper: npt.NDArray[np.float64]
    gradients: npt.NDArray[np.float64]
    stored_by_column: bool = False

    @cached_property
    def sensitivity(self) -> npt.NDArray[np.float64]:
        """G_i · mean_j 1 / U_jj², [out]; channels without influence count as a millionth of the mean."""
        found = self.gradients * np.mean(1 / np.diagonal(self.upper) ** 2)
        mean = float(found.mean())
        return np.maximum(found, 1e-6 * mean if mean > 0 else 1.0)

    @cached_property
    def least_steps(self) -> npt.NDArray[np.float64]:
        """The finest steps with which all integers fit into int8, [out]."""
        peak = np.abs(self.weight).max(axis=0).astype(np.float64) / LEVELS
        return np.where(peak == 0, 1.0, peak)

    @cached_property
    def unit_steps(self) -> npt.NDArray[np.float64]:
        """Each column's step where δ is 1, [out]."""
        if self.stored_by_column:
            return 1 / np.sqrt(self.sensitivity)
        magnitude = np.abs(self.weight).mean(axis=0, dtype=np.float64)
        steps = np.power(np.maximum(magnitude, 1e-6 * magnitude.mean()) / self.sensitivity, SHARED_POWER)
        return np.asarray(steps / math.sqrt(np.mean(self.sensitivity * steps**2)), np.float64)

    @cached_property
    def sample(self) -> npt.NDArray[np.intp]:
        """Some columns that stand for all: every eighth by the size of its integers, and not too few."""
        size = np.abs(self.weight).mean(axis=0) / self.unit_steps
        count = len(size)
        chosen = min(count, max(MIN_COLUMNS, count // SAMPLED, MIN_WEIGHTS // len(self.weight)))
        return np.sort(np.argsort(size)[((np.arange(chosen) + 0.5) * count / chosen).astype(np.intp)])

    def steps(self, delta: float) -> npt.NDArray[np.float32]:
        """Each column's step, [out]."""
        return snap_steps(delta * self.unit_steps, self.least_steps)

    def loss(self, delta: float) -> float:
        """The expected squared change of the output, to second order."""
        return float(len(self.weight) / 12 * np.sum(self.sensitivity * self.steps(delta).astype(np.float64) ** 2))

    def round(self, delta: float, *, strength: float, columns: npt.NDArray[np.intp] | None = None) -> Rounded:
        """The integers at ``delta``, of all columns or of some; ``strength`` weighs the rate term, 1 in theory."""
        chosen = np.arange(self.weight.shape[1]) if columns is None else columns
        steps = self.steps(delta)[chosen]
        weight = self.weight[:, chosen]
        if strength == 0:
            return Rounded(values=round_gptq(weight, self.upper, steps), steps=steps)
        classes = self._classes(steps, weight)
        sensitivity = self.sensitivity[chosen] / np.mean(1 / np.diagonal(self.upper) ** 2)
        worth = strength * BIT_SLOPE * delta**2 / (sensitivity * steps.astype(np.float64) ** 2)
        sample = self.sample if columns is None else np.arange(len(chosen))
        values = np.clip(np.rint(weight[:, sample] / steps[sample]), -LEVELS, LEVELS).astype(np.int8)
        for _ in range(2):  # the codes depend on the values and the values on the codes
            rate = _rate_term(values, classes[sample], worth[sample])
            values = round_gptq(weight[:, sample], self.upper, steps[sample], rate=rate)
        if columns is None:
            rate = _rate_term(values, classes[sample], worth[sample])
            rate = RateTerm(bits=rate.bits, classes=classes, worth=worth)
            values = round_gptq(weight, self.upper, steps, rate=rate)
        return Rounded(values=values, steps=steps)

    def stored(self, rounded: Rounded) -> npt.NDArray[np.int8]:
        """The integers as the file holds them."""
        return np.ascontiguousarray(rounded.values.T) if self.stored_by_column else rounded.values

    def _classes(self, steps: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        """Up to four classes of columns by the spread of their integers, as the coder may give rows; else one."""
        if not self.stored_by_column:
            return np.zeros(len(steps), np.intp)
        spread = weight.std(axis=0) / steps
        return np.asarray(np.searchsorted(np.quantile(spread, (0.25, 0.5, 0.75)), spread), np.intp)


def predict_bytes(tensors: Sequence[GridTensor], delta: float, *, strength: float) -> float:
    """The bytes of integers and steps that ``tensors`` would take, from some columns of each."""
    arrays: list[npt.NDArray[Any]] = []
    for tensor in tensors:
        columns = tensor.sample
        rounded = tensor.round(delta, strength=strength, columns=columns)
        # Repeated until they are as many as the tensor has, so that tables and blocks count as they will.
        repeated = rounded.values[:, np.arange(tensor.weight.shape[1]) % len(columns)]
        arrays += [tensor.stored(replace(rounded, values=repeated)), tensor.steps(delta)]
    return float(coded_bytes(*arrays))


def find_delta(predict: Callable[[float], float], goal: float, low: float, high: float, *, weights: int) -> float:
    """The δ between ``low`` and ``high`` at which ``predict`` gives ``goal`` bytes, to 0.05 % of them.

    ``predict`` has to fall with δ, for ``weights`` weights by nearly a bit each where δ doubles: a secant of bytes over
    log δ, kept between bounds. Where a bound isn't enough it is the bound.
    """
    left, right = math.log2(low), math.log2(high)
    slope = -weights / 8
    place = min(max(right + goal / slope, left), right)  # at ``high`` little is left to code
    past: tuple[float, float] | None = None
    for _ in range(16):
        found = predict(2.0**place)
        if abs(found - goal) <= TOLERANCE * goal:
            break
        left, right = (place, right) if found > goal else (left, place)
        if right - left < PRECISION:
            break
        if past is not None and place != past[0] and found != past[1]:
            slope = min((found - past[1]) / (place - past[0]), -1e-3 * weights)
        past = (place, found)
        place += (goal - found) / slope
        if not left < place < right:
            place = (left + right) / 2
    return float(2.0**place)


def _rate_term(values: npt.NDArray[np.int8], classes: npt.NDArray[np.intp], worth: npt.NDArray[np.float64]) -> RateTerm:
    """Code lengths from the integers as they are now, for each class of columns."""
    count = int(classes.max()) + 1
    bits = np.stack([symbol_bits(values[:, classes == index]) for index in range(count)])
    return RateTerm(bits=bits, classes=classes, worth=worth)
