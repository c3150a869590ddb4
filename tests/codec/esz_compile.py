"""Compiles the C coder, by gcc unless a test names another compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "edgeslim" / "codec" / "c"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compile_c(output: Path, *arguments: str | Path, compiler: str = "gcc") -> Path:
    """A missing compiler is an error, not a reason to skip; so is a warning."""
    command = [compiler, *WARNINGS, *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return output
