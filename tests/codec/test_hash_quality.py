"""What the container's hash detects, counted by a C program; FORMAT.md says why it is XXH32 in four strands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from esz_compile import SOURCES, compile_c


def count(folder: Path, rounds: int) -> dict[str, tuple[int, int]]:
    program = compile_c(
        folder / "hash", "-O3", "-I", SOURCES, Path(__file__).with_name("hash_quality.c"), SOURCES / "esz.c"
    )
    lines = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: (int(missed), int(tried)) for name, missed, tried in (line.split() for line in lines)}


def check(counted: dict[str, tuple[int, int]]) -> None:
    pairs, expected = counted.pop("collisions-of-24-bits")
    assert expected - 60 < pairs < expected + 60  # 5 standard deviations
    changed, half = counted.pop("avalanche")
    assert 0.995 < changed / half < 1.005
    assert len(counted) == 10
    for name, (missed, tried) in counted.items():
        assert tried > 0, name
        assert missed == 0, f"{name}: {missed} of {tried}"


def test_hash_detects_flips_bursts_and_moves(tmp_path: Path) -> None:
    check(count(tmp_path, 33_000))


@pytest.mark.slow
def test_hash_detects_them_among_millions(tmp_path: Path) -> None:
    check(count(tmp_path, 2_000_000))
