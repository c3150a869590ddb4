"""What integers take once they are entropy-coded, and steps that are cheap to store.

The size of a tensor is what the container's own coder makes of it. The size of a tensor that isn't rounded yet is
extrapolated from some of its columns: they are rounded and coded like the rest, so the estimate knows the coder's
alphabets, its whole code lengths and its tables. Steps are taken from a geometric grid of eight an octave, so that a
tensor's scales are a few different numbers, which the coder turns into indices of five bits or so; next to equal
slopes, a step that is off by a few percent costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.codec.encode import Segment, encode_container

__all__ = ["LEVELS", "coded_bytes", "snap_steps", "symbol_bits"]

LEVELS = 127
"""Integers go from -127 to 127."""
STEPS_PER_OCTAVE = 8
GOLDEN = (5**0.5 - 1) / 2


def coded_bytes(*arrays: npt.NDArray[Any]) -> int:
    """Bytes of ``arrays`` in a container, alignment included, header and index not."""
    coded = [Segment("t", array, array.dtype.name, array.shape) for array in arrays]
    empty = [Segment("t", b"", "bytes", array.shape) for array in arrays]
    return len(encode_container(coded)) - len(encode_container(empty))


def symbol_bits(values: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """-log2 of each integer's share from -127 to 127, float64 [255]; those that don't occur get what a quarter would.

    Past the largest integer that occurs the curve goes on: a value never seen is never cheaper than its neighbour.
    """
    counts = np.bincount(values.ravel().astype(np.intp) + LEVELS, minlength=2 * LEVELS + 1).astype(np.float64)
    counts = np.maximum(counts, 0.25)
    bits = np.log2(counts.sum() / counts)
    bits[LEVELS:] = np.maximum.accumulate(bits[LEVELS:])
    bits[LEVELS::-1] = np.maximum.accumulate(bits[LEVELS::-1])
    return np.asarray(bits, np.float64)


def snap_steps(steps: npt.NDArray[Any], least: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Steps of the form 2**(k / 8) next to ``steps``, half of them above and half below, and none below ``least``.

    Which way a step goes depends on its place, so that steps that are all equal don't jump together as they grow.
    """
    dither = np.arange(len(steps)) * GOLDEN % 1
    exponents = np.floor(np.log2(np.asarray(steps, np.float64)) * STEPS_PER_OCTAVE + dither)
    smallest = np.ceil(np.log2(np.asarray(least, np.float64)) * STEPS_PER_OCTAVE - 1e-5)
    snapped = np.exp2(np.maximum(exponents, smallest) / STEPS_PER_OCTAVE)
    return np.asarray(snapped, np.float32)
