"""Sizes of entropy-coded integers, and steps that are cheap to store."""

from __future__ import annotations

import numpy as np

from edgeslim.algorithms.rate import coded_bytes, snap_steps, symbol_bits
from edgeslim.codec import Segment, encode_container

RNG = np.random.default_rng(0)


def test_coded_bytes_are_what_a_tensor_adds_to_a_container() -> None:
    first = Segment("a", RNG.integers(-3, 4, (64, 512), np.int8), "int8", (64, 512))
    values = np.rint(RNG.normal(0, 2, (400, 384))).astype(np.int8)
    added = len(encode_container([first, Segment("b", values, "int8", values.shape)])) - len(encode_container([first]))
    assert abs(coded_bytes(values) - added) <= 128  # index entry and alignment
    counts = np.bincount(values.ravel().astype(int) + 127)
    share = counts[counts > 0] / values.size
    entropy_bytes = -(share * np.log2(share)).sum() * values.size / 8
    assert entropy_bytes < coded_bytes(values) < 1.03 * entropy_bytes


def test_symbol_bits_by_hand() -> None:
    bits = symbol_bits(np.array([0, 0, 0, 0, 1, 1, -1, -1], np.int8))
    total = np.log2(8 + 252 * 0.25)
    np.testing.assert_allclose(bits[[126, 127, 128]], [total - 1, total - 2, total - 1])
    np.testing.assert_allclose(bits[[0, 125, 129, 254]], total + 2)


def test_a_value_is_never_dearer_than_one_further_from_zero() -> None:
    bits = symbol_bits(np.array([0, 2, 2, 2, -5], np.int8))
    assert (np.diff(bits[127:]) >= 0).all()
    assert (np.diff(bits[:128]) <= 0).all()


def test_steps_are_snapped_to_eighths_of_an_octave() -> None:
    steps = RNG.uniform(1e-4, 1, 5000)
    snapped = snap_steps(steps, np.full(5000, 1e-6))
    assert snapped.dtype == np.float32
    ratio = snapped / steps
    assert ratio.min() > 2 ** (-1 / 8) * (1 - 1e-6)
    assert ratio.max() < 2 ** (1 / 8) * (1 + 1e-6)
    assert abs(np.log2(ratio).mean()) < 2e-3
    exponents = np.log2(snapped.astype(np.float64)) * 8
    np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-5)
    assert coded_bytes(snapped) < 0.9 * steps.size  # an index of some bits a step, not four bytes


def test_no_step_is_finer_than_the_least() -> None:
    least = RNG.uniform(1e-3, 1, 1000)
    snapped = snap_steps(np.full(1000, 0.03), least)
    assert (snapped >= least * (1 - 2e-6)).all()
    assert (snapped[least > 0.03] < least[least > 0.03] * 2 ** (1 / 8)).all()


def test_equal_steps_grow_one_after_another() -> None:
    means = [snap_steps(np.full(1000, step), np.full(1000, 1e-6)).mean() for step in np.geomspace(0.1, 0.11, 50)]
    assert np.diff(means).min() > 0
    assert np.diff(np.log2(means)).max() < 0.01
