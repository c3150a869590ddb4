"""Unpacking on a plain JVM. The scenarios are in ``io/edgeslim/ModelFilesMain.java``; all run in one JVM."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parent / "io" / "edgeslim" / "ModelFilesMain.java"
CONTAINER = Path(__file__).parents[1] / "golden" / "sparse.esz"
SCENARIOS = re.findall(r"void (test\w+)\(", SOURCE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def outcomes(run_java: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lines = run_java("ModelFilesMain", CONTAINER, tmp_path_factory.mktemp("models")).splitlines()
    return {line.split()[1].rstrip(":"): line for line in lines}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == f"ok {scenario}"


def test_two_processes_unpack_once(build_java: ModuleType, java_classes: Path, tmp_path: Path) -> None:
    command = [build_java.jdk_tool("java"), "-cp", str(java_classes), "io.edgeslim.ModelFilesMain"]
    command += [str(CONTAINER), "-", str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert sorted(out.strip() for out, _ in ends) == ["false", "true"], ends
    (version,) = [path.name for path in (tmp_path / "edgeslim" / "test").iterdir() if path.name != ".lock"]
    assert re.fullmatch(r"[0-9a-f]{32}", version)
