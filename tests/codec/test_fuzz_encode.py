"""Any bytes through encoder and decoder, under AddressSanitizer and UndefinedBehaviorSanitizer.

``fuzz_encode.c`` has the property: bytes, type, shape and options chosen by libFuzzer, encoded, decoded, equal.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from esz_compile import SOURCES, compile_c

from tests.needs import need

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
SECONDS = 12
CHOICES = 16
FLAGS = ("-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("clang")
    sources = (HERE / "fuzz_encode.c", SOURCES / "esz.c", SOURCES / "esz_encode.c")
    return compile_c(tmp_path_factory.mktemp("fuzz") / "fuzz", *FLAGS, "-I", SOURCES, *sources, compiler="clang")


def write_seeds(folder: Path) -> None:
    """Each golden image under options that lead to each alphabet, codebook, row class and number of streams."""
    folder.mkdir()
    for image in sorted(GOLDEN.glob("*.bin")):
        data = image.read_bytes()[:16_384]
        for number in range(7):
            choices = bytearray(CHOICES)
            choices[0] = number  # 4 KiB blocks and larger
            choices[1] = number % 2 | (number % 4) << 1
            choices[2] = int(number == 0)  # all alphabets, or one and what may be added to it
            choices[3] = 1 << number
            choices[9] = 3
            choices[4] = number % 5 | 3 << 5
            choices[5] = (100, 20, 0, 32, 48, 80, 40)[number]
            (folder / f"{image.stem}-{number}").write_bytes(choices + data)


def run_fuzzer(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # libFuzzer's own limit takes the peak, which a process inherits from a large parent such as this one.
    environment = {**os.environ, "ASAN_OPTIONS": "hard_rss_limit_mb=1024"}
    return subprocess.run(
        [program, "-max_len=70000", "-rss_limit_mb=0", "-malloc_limit_mb=1024", "-seed=1", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def test_every_golden_image_comes_back_under_any_options(program: Path, tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds")
    done = run_fuzzer(program, tmp_path, "-runs=0", "seeds")
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_the_fuzzer_finds_nothing(program: Path, tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds")
    (tmp_path / "found").mkdir()
    done = run_fuzzer(program, tmp_path, f"-max_total_time={SECONDS}", "found", "seeds")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
