"""Compiles the C coder from its sources, so that the edited file is what is tested, not an installed library."""

from __future__ import annotations

from pathlib import Path

import pytest
from esz_compile import SOURCES, compile_c


@pytest.fixture(scope="session")
def compiled_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("esz") / "libesz.so"
    flags = ("-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-DESZ_SHARED")
    return compile_c(output, *flags, SOURCES / "esz.c", SOURCES / "esz_encode.c")


@pytest.fixture(autouse=True)
def _fresh_library(compiled_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(compiled_library))
