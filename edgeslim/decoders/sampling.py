"""The next token out of a model's logits: the likeliest, or one drawn from those that together have probability p.

Nucleus sampling is that of Holtzman et al. 2019, arXiv 1904.09751. The loaders in C (``edgeslim_sample.c``) and Java
(``Sampler``) draw the same tokens for equal logits, settings and seeds, on every machine: probabilities are whole
numbers, and no function of a mathematical library is called, whose last bits differ. ``docs/generating.md`` has the
steps. Draws come from SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BadInputError

__all__ = ["Sampling", "SplitMix64"]

_ALL = (1 << 64) - 1
_SCALE = float.fromhex("0x1.71547652b82fep+32")
"""log2(e) in units of 2^-32."""
_TERMS = (4294967296, 2977044472, 1031764991, 238388332, 41309550, 5726720, 661577, 65510, 5676, 437, 30, 2)
"""Taylor coefficients of 2^-x, without their signs, in units of 2^-32."""
_ID_BITS = 30
_LAST = (1 << _ID_BITS) - 1
_MAX_VOCABULARY = 1 << 20


class SplitMix64:
    """A generator of 64 bits at a time, whose state is one number."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _ALL

    def next_bits(self) -> int:
        """The next whole number from 0 to 2^64 - 1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _ALL
        z = self._state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _ALL
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _ALL
        return z ^ z >> 31


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; else one of those that together have probability ``top_p``."""

    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature: {self.temperature}, expected 0 to 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}, expected more than 0 and at most 1")
        if not 0 <= self.seed <= _ALL:
            raise ValueError(f"seed: {self.seed}, expected 0 to 2^64 - 1")

    def choose(self, logits: npt.NDArray[np.float32], generator: SplitMix64) -> int:
        """A token for ``logits`` [vocabulary]; of two that are as likely, the first.

        Raises:
            BadInputError: a logit is NaN or infinitely large, or none is finite.
        """
        largest = float(logits.max())
        if not np.isfinite(largest):
            raise BadInputError("model", "logits that are NaN or infinite", expected="finite logits")
        if len(logits) > _MAX_VOCABULARY:
            raise BadInputError("model", f"{len(logits)} logits", expected=f"at most {_MAX_VOCABULARY}")
        if self.temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):
            distances = (largest - logits.astype(np.float64)) / self.temperature
        weights = weigh(distances)
        tokens = np.flatnonzero(weights)
        keys = (weights[tokens] << np.uint64(_ID_BITS)) | (np.uint64(_LAST) - tokens.astype(np.uint64))
        keys = np.sort(keys)[::-1]
        sums = np.cumsum(keys >> np.uint64(_ID_BITS))  # below 2^53: exact as float64, too
        kept = int(np.searchsorted(sums.astype(np.float64), self.top_p * float(sums[-1]))) + 1
        kept = min(kept, len(sums))
        point = (generator.next_bits() >> 11) * 2.0**-53 * float(sums[kept - 1])
        place = min(int(np.searchsorted(sums[:kept].astype(np.float64), point, side="right")), kept - 1)
        return _LAST - (int(keys[place]) & _LAST)


def weigh(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """exp(-distance) in units of 2^-32 for distances of 0 and more, at most 3 of those units off.

    2^-k shifts; for the fraction of a power of two it is the Taylor series of 2^-x, in whole numbers.
    """
    with np.errstate(over="ignore"):
        scaled = distances * _SCALE
    counts = scaled < 33 * 2.0**32
    whole = np.where(counts, scaled, 0).astype(np.uint64)
    part = whole & np.uint64(0xFFFFFFFF)
    total = np.full(len(part), _TERMS[-1], np.uint64)
    for term in reversed(_TERMS[:-1]):
        total = np.uint64(term) - (total * part >> np.uint64(32))
    made: npt.NDArray[np.uint64] = np.where(counts, total >> (whole >> np.uint64(32)), np.uint64(0))
    return made
