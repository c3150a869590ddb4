"""What starts quickly stays quick: the command line's own words load no heavy library."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "onnx", "onnx_ir", "datasets", "optimum", "huggingface_hub")
CPU_SECONDS = 0.3


def loaded_after(code: str, folder: Path) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after ``code``."""
    script = f"import sys\n{code}\nprint('loaded:', *sorted(set(sys.modules) & set({HEAVY!r})))\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def command(*arguments: str) -> str:
    return f"sys.argv = {['edgeslim', *arguments]!r}\nfrom edgeslim.cli import run\ncode = run()"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("build", "--help"),
        ("--version",),
        ("targets",),
        ("targets", "show", "android-arm64"),
    ],
    ids=" ".join,
)
def test_commands_that_build_nothing_load_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded_after(command(*arguments) + "\nassert code == 0", tmp_path) == set()


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_after("import edgeslim\nassert callable(edgeslim.build)", tmp_path) == set()


@pytest.mark.parametrize("arguments", [("build",), ("build", "m", "--target", "toaster")], ids=" ".join)
def test_usage_errors_come_before_anything_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    heavy = loaded_after(
        command(*arguments).replace("code = run()", "sys.stderr = sys.stdout\ncode = run()\nassert code == 2"), tmp_path
    )
    assert "torch" not in heavy
    assert "transformers" not in heavy


def test_help_takes_a_third_of_a_second(tmp_path: Path) -> None:
    """CPU time, not the clock: others may use the machine. The best of three, for the first may fill caches."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "edgeslim", "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "build" in done.stdout
        assert done.stderr == ""
    assert min(times) <= CPU_SECONDS, times
