"""Compiles the C coder from its sources, so that the edited file is what is tested, not an installed library."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "edgeslim" / "codec" / "c"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compile_c(output: Path, *arguments: str | Path) -> Path:
    """Runs gcc; a missing compiler is an error, not a reason to skip."""
    command = ["gcc", *WARNINGS, *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return output


@pytest.fixture(scope="session")
def compiled_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("esz") / "libesz.so"
    flags = ("-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-DESZ_SHARED")
    return compile_c(output, *flags, SOURCES / "esz.c", SOURCES / "esz_encode.c")


@pytest.fixture(autouse=True)
def _fresh_library(compiled_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(compiled_library))
