"""What the checks' tests share besides ``small_models``."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from edgeslim.checks.kernel_table import KernelTable, load_table
from edgeslim.session import runtime_version

SOURCES = Path(__file__).parents[2] / "edgeslim" / "codec" / "c"


@pytest.fixture(scope="session")
def host_table() -> KernelTable:
    """The table of the ONNX Runtime that runs these tests."""
    table = load_table(runtime_version(), platform.machine().lower())
    if table is None:
        pytest.skip(f"no table for ONNX Runtime {runtime_version()}")
    return table


@pytest.fixture(scope="session")
def compiled_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C coder, compiled from the sources as they are."""
    output = tmp_path_factory.mktemp("esz") / "libesz.so"
    flags = ("-std=c99", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DESZ_SHARED")
    command = ["gcc", *flags, str(SOURCES / "esz.c"), str(SOURCES / "esz_encode.c"), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output
