"""In Make and Ninja, and as whole processes: what is built again, what is said, and how long nothing takes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROJECT = """\
model = "mlp.onnx"
target = "board.toml"
[data]
file = "my data.npz"
[budget]
max_latency = "9s"
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'
PACKAGE = "out/board/mlp.tar.gz"
MAKEFILE = """\
all: {package}
{package}:
\t@echo building
\t@{python} -m edgeslim build -q --depfile mlp.d 2>/dev/null
-include mlp.d
"""
NINJA = """\
rule edgeslim
  command = {python} -m edgeslim build -q --depfile $out.d 2>/dev/null
  description = building
  depfile = $out.d
  deps = gcc
build {package}: edgeslim
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("shared") / "cache"
    return {**os.environ, "EDGESLIM_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, mlp_onnx: Path) -> Path:
    folder = tmp_path_factory.mktemp("template") / "a project"
    folder.mkdir()
    shutil.copy(mlp_onnx, folder / "mlp.onnx")
    np.savez(folder / "my data.npz", x=np.random.default_rng(9).normal(0, 1, (40, 16)).astype(np.float32))
    (folder / "edgeslim.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "board.toml").write_text(BOARD, encoding="utf-8")
    files = {"python": sys.executable, "package": PACKAGE}
    (folder / "Makefile").write_text(MAKEFILE.format(**files), encoding="utf-8")
    (folder / "build.ninja").write_text(NINJA.format(**files), encoding="utf-8")
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    """A folder with a space in its name and in that of an input."""
    return Path(shutil.copytree(template, tmp_path / "a project"))


def edgeslim(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeslim", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("tool", ["make", "ninja"])
def test_a_changed_input_is_built_again_and_nothing_else(project: Path, environment: dict[str, str], tool: str) -> None:
    command = shutil.which(tool)
    if command is None:
        pytest.skip(f"no {tool} here")

    def run() -> str:
        done = subprocess.run(
            [command], cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout + done.stderr

    assert "building" in run()
    first = (project / PACKAGE).read_bytes()
    for _ in range(2):
        assert "building" not in run()
    time.sleep(0.02)
    np.savez(project / "my data.npz", x=np.random.default_rng(10).normal(0, 1, (40, 16)).astype(np.float32))
    assert "building" in run()
    assert (project / PACKAGE).read_bytes() != first
    assert "building" not in run()
    (project / "LICENSE").touch()  # unknown to the last build, so no reason for another
    assert "building" not in run()


def test_make_goes_on_after_an_input_was_deleted(project: Path, environment: dict[str, str]) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    (project / "mlp.d").write_text(f"{PACKAGE}: gone.json\n\ngone.json:\n", encoding="utf-8")
    done = subprocess.run(["make"], cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert "building" in done.stdout
    assert "gone" not in (project / "mlp.d").read_text(encoding="utf-8")


def test_a_second_build_is_quick_silent_and_the_same(project: Path, environment: dict[str, str]) -> None:
    first = edgeslim(project, environment, "build", "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert first.stderr.splitlines()[-1] == "warning: unjudged: latency.device_latency_p50_ms"
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (project / "out").rglob("*")}

    walls, processor = [], []
    for _ in range(5):
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        again = edgeslim(project, environment, "build", "-q")
        walls.append(time.perf_counter() - started)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
        if walls[-1] < 2:
            break
    assert min(walls) < 2, f"{walls} s, of which computing {processor}"
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "warning: unjudged: latency.device_latency_p50_ms\n"

    shown = edgeslim(project, environment, "build", "--json", "--require-judged")
    assert shown.returncode == 4
    assert "error: budget: unjudged: latency.device_latency_p50_ms" in shown.stderr
    assert json.loads(shown.stdout) == report
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (project / "out").rglob("*")} == before


def test_quiet_says_nothing_where_all_is_judged(project: Path, environment: dict[str, str]) -> None:
    (project / "edgeslim.toml").write_text(PROJECT[: PROJECT.index("[budget]")], encoding="utf-8")
    for _ in range(2):
        done = edgeslim(project, environment, "build", "-q")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_builds_at_once_share_the_cache(
    project: Path, template: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Twice the same, and another: into a cache of their own, which is empty."""
    environment = {**environment, "EDGESLIM_CACHE": str(tmp_path / "cache")}
    twin, other = (Path(shutil.copytree(template, tmp_path / name)) for name in ("twin", "other"))
    (other / "board.toml").write_text(BOARD + '[runtime]\nint8_form = "qdq"\nversion = "1.29.0"\n', encoding="utf-8")
    processes = [
        subprocess.Popen([sys.executable, "-m", "edgeslim", "build", "-q"], cwd=folder, env=environment)
        for folder in (project, twin, other)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    packages = [(folder / PACKAGE).read_bytes() for folder in (project, twin, other)]
    assert packages[0] == packages[1] != packages[2]
    kept = {path.name for path in (tmp_path / "cache" / "v1").iterdir()}
    assert all(len(name) == 64 for name in kept), kept
    for folder in (project, twin, other):
        assert "nothing would run" in edgeslim(folder, environment, "build", "--dry-run").stdout


def test_the_cache_is_shown_limited_and_cleared(project: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "EDGESLIM_CACHE": str(tmp_path / "cache")}
    assert edgeslim(project, environment, "build", "-q").returncode == 0
    shown = edgeslim(project, environment, "cache")
    assert [line.split()[1] for line in shown.stdout.splitlines()[:-1]] == [
        *("export", "quantize_int8", "encode", "package", "build", "last")
    ]
    assert f"of at most 5.00 GB, in {tmp_path / 'cache'}" in shown.stdout
    plain = json.loads(edgeslim(project, environment, "cache", "--json").stdout)
    assert plain["limit_bytes"] == 5 * 10**9
    assert [entry["step"] for entry in plain["entries"]][:2] == ["export", "quantize_int8"]
    total = sum(entry["bytes"] for entry in plain["entries"])

    small = {**environment, "EDGESLIM_CACHE_LIMIT": f"{total // 2}B"}
    (project / "edgeslim.toml").write_text(PROJECT.replace("9s", "8s"), encoding="utf-8")
    assert edgeslim(project, small, "build", "-q").returncode == 0
    left = json.loads(edgeslim(project, small, "cache", "--json").stdout)["entries"]
    assert 0 < sum(entry["bytes"] for entry in left) <= total // 2

    cleared = edgeslim(project, environment, "cache", "--clear")
    assert cleared.stdout == f"removed {len(left)} entries from {tmp_path / 'cache' / 'v1'}\n"
    assert json.loads(edgeslim(project, environment, "cache", "--json").stdout)["entries"] == []
    off = {**environment, "EDGESLIM_CACHE": "off"}
    assert json.loads(edgeslim(project, off, "cache", "--json").stdout)["entries"] == []
    assert edgeslim(project, off, "cache").stdout == "the cache is off (EDGESLIM_CACHE=off)\n"
