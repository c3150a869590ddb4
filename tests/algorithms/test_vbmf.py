"""The rank of matrices whose rank is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.vbmf import vbmf_rank


@pytest.mark.parametrize("rank", [0, 1, 5, 12])
@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (60, 60)])
def test_the_rank_beneath_noise(rank: int, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(rank)
    signal = random.normal(size=(shape[0], rank)) @ random.normal(size=(rank, shape[1]))
    assert vbmf_rank(signal + 0.3 * random.normal(size=shape)) == rank


def test_edges() -> None:
    assert vbmf_rank(np.zeros((3, 5))) == 0
    assert vbmf_rank(np.ones((8, 9)) + 1e-3 * np.random.default_rng(0).normal(size=(8, 9))) == 1
    with pytest.raises(ValueError, match="NaN"):
        vbmf_rank(np.full((2, 2), np.inf))
