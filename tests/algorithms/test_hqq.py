"""HQQ against a plain loop over single numbers, and against fitting by squared error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeslim.algorithms.blockwise import fit_blocks, round_blocks, round_scale
from edgeslim.algorithms.hqq import round_hqq, shrink

NORM = 0.7


def plain_hqq(block: list[float], scale: float, zero: int, *, symmetric: bool) -> tuple[float, int]:
    """The method as its authors describe it, one number at a time, in float64."""

    def levels_of(step: float, middle: float) -> list[int]:
        return [min(max(round(value / step + middle), 0), 15) for value in block]

    def norm(step: float, middle: int) -> float:
        levels = [min(max(round(value / step) + middle, 0), 15) for value in block]
        return sum(abs(value - (level - middle) * step) ** NORM for value, level in zip(block, levels, strict=True))

    best, least = (scale, zero), norm(scale, zero)
    step, middle, beta = scale, float(zero), 10.0
    for _ in range(20):
        levels = levels_of(step, middle)
        target = []
        for value, level in zip(block, levels, strict=True):
            error = value / step - (level - middle)
            kept = max(abs(error) - (abs(error) + 1e-8) ** (NORM - 1) / beta, 0)
            target.append(value - math.copysign(kept, error) * step)

        def solve(centre: float, levels: list[int] = levels, target: list[float] = target) -> float:
            power = sum((level - centre) ** 2 for level in levels)
            return sum((level - centre) * aim for level, aim in zip(levels, target, strict=True)) / power

        if symmetric:
            step = solve(middle)
            tried = (float(round_scale(np.array(step))), zero)
        else:
            middle = sum(level - aim / step for level, aim in zip(levels, target, strict=True)) / len(block)
            rounded = min(max(round(middle), 0), 15)
            tried = (float(round_scale(np.array(solve(rounded)))), rounded)
        if norm(*tried) < least:
            best, least = tried, norm(*tried)
        beta *= 1.01
    return best


@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_a_plain_loop(*, symmetric: bool) -> None:
    weight = np.random.default_rng(0).standard_t(3, size=(40, 16)).astype(np.float32)
    first = fit_blocks(weight, bits=4, block_size=16, symmetric=symmetric)
    found = round_hqq(weight, bits=4, block_size=16, symmetric=symmetric)
    same = 0
    for row in range(40):
        zero = 8 if first.zero_point is None else int(first.zero_point[row, 0])
        scale, middle = plain_hqq(weight[row].tolist(), float(first.scale[row, 0]), zero, symmetric=symmetric)
        mine = 8 if found.grid.zero_point is None else int(found.grid.zero_point[row, 0])
        same += mine == middle and abs(float(found.grid.scale[row, 0]) - scale) < 2e-3 * abs(scale)
    assert same >= 38, "but for float32 against float64 at ties"


def test_shrinking_by_hand() -> None:
    values = np.array([-2.0, 0.0, 0.05, 1.0], np.float32)
    taken = 2 ** (NORM - 1) / 10
    np.testing.assert_allclose(shrink(values, 10), [-(2 - taken), 0, 0, 0.9], atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_lowers_its_norm(*, symmetric: bool) -> None:
    weight = np.random.default_rng(1).standard_t(3, size=(300, 64)).astype(np.float32)
    settings = {"bits": 4, "block_size": 32, "symmetric": symmetric}

    def norm(made: np.ndarray) -> np.ndarray:
        return np.power(np.abs(made - weight), NORM).reshape(300, 2, 32).sum(axis=2)

    nearest = norm(round_blocks(weight, **settings).dequantize())
    found = norm(round_hqq(weight, **settings).dequantize())
    assert (found <= nearest * (1 + 1e-4)).all()
    assert found.sum() < 0.995 * nearest.sum()
