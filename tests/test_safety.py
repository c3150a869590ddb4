"""What a kill, a signal, a full disk and a hostile model do to what lay there before: nothing.

Builds are forked from one process that has loaded everything, so that 50 of them can be killed within seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SERVER = """
import ctypes, gc, json, os, resource, signal, sys, time
from pathlib import Path
from edgeslim import cli, final_checks

final_checks.check_latency = lambda *arguments, **options: iter(())


def build(order):
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    sys.argv = ["edgeslim", "build", *order["arguments"]]
    log = os.open("../log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    if order.get("powerless"):  # root without its power to write where nobody may
        ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    if order.get("die_at_rename") is not None:
        left, replace = [order["die_at_rename"]], Path.replace

        def dying(path, place):
            if Path(place).parts[0] == "out":
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return replace(path, place)

        Path.replace = dying
    code = cli.run()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


os.chdir(sys.argv[1])
sys.argv = ["edgeslim", "build", "mlp.onnx", "--target", "board.toml", "--data", "data-0.npz", "-q"]
assert cli.run() == 0  # loads all that a build needs
gc.collect()
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here, as under nohup
        code = 99
        try:
            code = build(order)
        finally:
            os._exit(code)
    if order.get("signal"):
        time.sleep(order["after"])
        os.kill(child, order["signal"])
    _, status = os.waitpid(child, 0)
    log = (Path(order["folder"]) / "../log").read_text() if (Path(order["folder"]) / "../log").exists() else ""
    ended = {"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - started, "log": log}
    print(json.dumps(ended), flush=True)
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'


class Builder:
    """Starts builds in ``folder``, of one of two sets of data, and looks at what is there afterwards."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.cache = folder.parent / "cache"
        self._process = process

    def run(self, data: int, *, cache: bool = False, out: str = "out", **more: Any) -> dict[str, Any]:
        order = {
            "folder": str(self.folder),
            "environment": {"EDGESLIM_CACHE": str(self.cache) if cache else "off"},
            "arguments": ["mlp.onnx", "--target", "board.toml", "--data", f"data-{data}.npz", "-o", out, "-q"],
            **more,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        ended: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "Traceback" not in ended["log"], ended["log"]
        assert "internal error" not in ended["log"], ended["log"]
        return ended

    def package(self) -> str:
        """The hash of the package; the report beside it is whole."""
        report = json.loads((self.folder / "out" / "report.json").read_text(encoding="utf-8"))
        assert report["schema"] == 1
        return hashlib.sha256((self.folder / "out" / "mlp.tar.gz").read_bytes()).hexdigest()

    def litter(self) -> list[str]:
        """What no build may leave, in the working folder, the output, and the cache."""
        own = {"board.toml", "data-0.npz", "data-1.npz", "mlp.onnx", "out"}
        found = [str(path) for path in self.folder.iterdir() if path.name not in own]
        found += [str(path) for path in self.folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
        kept = (self.cache / "v1").iterdir() if (self.cache / "v1").is_dir() else ()
        found += [str(path) for path in kept if len(path.name) != 64]
        return found


def make_project(folder: Path, mlp_onnx: Path) -> Path:
    folder.mkdir()
    shutil.copy(mlp_onnx, folder / "mlp.onnx")
    (folder / "board.toml").write_text(BOARD, encoding="utf-8")
    for number in range(2):
        values = np.random.default_rng(number).normal(0, 1 + number, (24, 16)).astype(np.float32)
        np.savez(folder / f"data-{number}.npz", x=values)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlp_onnx: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, str(make_project(tmp_path_factory.mktemp("server") / "work", mlp_onnx))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def builder(server: subprocess.Popen[str], tmp_path: Path, mlp_onnx: Path) -> Builder:
    return Builder(make_project(tmp_path / "work", mlp_onnx), server)


@pytest.fixture
def built(builder: Builder) -> tuple[Builder, tuple[str, str], float]:
    """The package of data 0 lies there; also the hashes of both packages, and how long a build takes."""
    hashes = []
    for data in (1, 0):
        ended = builder.run(data)
        assert ended["code"] == 0, ended
        hashes.append(builder.package())
    assert hashes[0] != hashes[1]
    return builder, (hashes[1], hashes[0]), ended["seconds"]


# Kills and signals


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True], ids=["uncached", "cached"])
def test_kills_at_random_moments(built: tuple[Builder, tuple[str, str], float], cache: bool) -> None:
    """25 each: the package is the old one or the new one, and the next build is right and leaves nothing."""
    builder, hashes, seconds = built
    moments = random.Random(41 + cache)
    killed = 0
    for number in range(25):
        data = (number + 1) % 2
        shutil.rmtree(builder.cache, ignore_errors=True)
        ended = builder.run(data, cache=cache, signal=signal.SIGKILL, after=moments.uniform(0, 1.1 * seconds))
        killed += ended["code"] == -signal.SIGKILL
        assert builder.package() in (hashes[0], hashes[1])
        again = builder.run(data, cache=cache)
        assert again["code"] == 0, again
        assert builder.package() == hashes[data]
        assert builder.litter() == []
    assert killed >= 10


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_renames(built: tuple[Builder, tuple[str, str], float], renames: int) -> None:
    builder, hashes, _ = built
    assert builder.run(1, die_at_rename=renames)["code"] == -signal.SIGKILL
    assert builder.package() == hashes[renames]
    assert builder.run(1)["code"] == 0
    assert builder.package() == hashes[1]
    assert builder.litter() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_at_random_moments(built: tuple[Builder, tuple[str, str], float], number: signal.Signals) -> None:
    builder, hashes, seconds = built
    moments = random.Random(43)
    codes = []
    for _ in range(5):
        after = 0.05 + moments.uniform(0, 0.8 * seconds)
        ended = builder.run(1, cache=True, signal=int(number), after=after)
        codes.append(ended["code"])
        assert ended["code"] in (0, 128 + number), ended
        if ended["code"]:
            assert ended["log"].endswith("the output is as it was, or finished\n")
        assert builder.package() in hashes
        assert builder.litter() == []
        shutil.rmtree(builder.cache, ignore_errors=True)
        assert builder.run(0)["code"] == 0
    assert 128 + number in codes


# Disks


@pytest.mark.parametrize("limit", [200, 3_000, 8_000, 13_000])
def test_a_disk_without_room(built: tuple[Builder, tuple[str, str], float], limit: int) -> None:
    """A limit on the size of a file gives the error of a full disk at the same places, and needs no rights."""
    builder, hashes, _ = built
    before = {path: path.stat().st_mtime_ns for path in (builder.folder / "out").rglob("*")}
    ended = builder.run(1, cache=True, limit=limit)
    assert ended["code"] == 3, ended
    assert ended["log"].startswith("error: ")
    assert "File too large" in ended["log"] or "requested and" in ended["log"]  # NumPy counts elements
    assert "expected: room and rights to write there" in ended["log"]
    assert {path: path.stat().st_mtime_ns for path in (builder.folder / "out").rglob("*")} == before
    assert builder.package() == hashes[0]
    assert builder.litter() == []
    assert builder.run(1, cache=True)["code"] == 0
    assert builder.package() == hashes[1]


@pytest.mark.parametrize("locked", ["out", "out/deep", "."])
def test_an_output_that_is_read_only(built: tuple[Builder, tuple[str, str], float], locked: str) -> None:
    builder, hashes, _ = built
    out = "new" if locked == "." else "out" if locked == "out" else "out/deep"
    place = builder.folder / locked
    place.mkdir(exist_ok=True)
    place.chmod(0o555)
    try:
        ended = builder.run(1, out=out, powerless=True)
    finally:
        place.chmod(0o755)
    assert ended["code"] == 3, ended
    assert ended["log"].startswith(f"error: {builder.folder / out}: can't write here: not writable\n")
    assert "expected: a folder that can be written" in ended["log"]
    assert builder.package() == hashes[0]
    assert builder.litter() == []


def test_a_read_only_folder_around_a_writable_output(built: tuple[Builder, tuple[str, str], float]) -> None:
    builder, hashes, _ = built
    builder.folder.chmod(0o555)
    try:
        ended = builder.run(1, powerless=True)
    finally:
        builder.folder.chmod(0o755)
    assert ended["code"] == 0, ended
    assert builder.package() == hashes[1]
    assert builder.litter() == []


def test_a_read_only_cache(built: tuple[Builder, tuple[str, str], float]) -> None:
    builder, hashes, _ = built
    builder.cache.mkdir()
    builder.cache.chmod(0o555)
    try:
        assert builder.run(1, cache=True, powerless=True)["code"] == 0
    finally:
        builder.cache.chmod(0o755)
    assert builder.package() == hashes[1]
    assert list(builder.cache.iterdir()) == []
