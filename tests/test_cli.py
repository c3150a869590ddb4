"""The command line: its words, exit codes and streams. The builds themselves are in ``builds``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import cli
from edgeslim.core import ArtifactInfo, Finding, Report, StepRecord
from edgeslim.errors import BadInputError, BudgetError, CheckError, EdgeslimError, MissingToolError, UsageError
from edgeslim.recheck_device import DeviceOptions

PROMISED = ("package_bytes", "latency_p50_ms", "latency_ratio", "load_ms", "peak_memory_bytes")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgeslim", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        code = cli.run()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return Ended(code, written.out, written.err)

    return run


def spawn(*arguments: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "edgeslim", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def finding(check: str, metric: str, value: float | None, limit: float | None, note: str = "") -> Finding:
    return Finding.at_most(check, metric, value, "", limit, "host", note)


GOOD = finding("size", "package_bytes", 10, 20)
LARGE = finding("size", "package_bytes", 30, 20)
WORSE = finding("accuracy", "drop", 0.5, 0.01)
SLOW = finding("latency", "latency_ratio", 1.5, 0.5)
LOSSY = finding("lossless", "differing_bytes", 3, 0, "the first at byte 7")
FOREIGN = finding("operators", "unsupported_operators", 1, 0, "Levitate: no kernel")
UNKNOWN_DEVICE = finding("latency", "device_latency_p50_ms", None, 40.0)
UNKNOWN_OPERATORS = finding("operators", "unsupported_operators", None, 0)


def report(*findings: Finding) -> Report:
    return Report(
        target="board",
        artifact=ArtifactInfo(path="out/x.tar.gz", bytes=10),
        steps=(StepRecord(name="export", seconds=1.0, changed=1, bytes=5, skipped={}, metrics={}),),
        findings=findings,
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Instead of building: gives a report, or raises. Returns what the command line asked for."""

    def put(result: Report | BaseException) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def build(model: str | None = None, **options: Any) -> Report:
            asked.update(options, model=model)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(edgeslim, "build", build)
        return asked

    return put


# Words


def test_help(edge: Any) -> None:
    ended = edge("--help")
    assert ended.code == 0
    assert ended.err == ""
    for word in ("build", "targets", "--version"):
        assert word in ended.out


def test_help_of_build(edge: Any) -> None:
    ended = edge("build", "--help")
    assert ended.code == 0
    options = (
        "--target",
        "--data",
        "--task",
        "--recipe",
        "--max-drop",
        "--max-size",
        "--max-latency",
        "--out",
        "--json",
    )
    for option in (*options, "-o", "--require-judged", "--quiet"):
        assert option in ended.out


def test_version(edge: Any) -> None:
    assert edge("--version") == Ended(0, f"edgeslim {edgeslim.__version__}\n", "")


def test_targets(edge: Any) -> None:
    ended = edge("targets")
    assert (ended.code, ended.err) == (0, "")
    names = [line.split()[0] for line in ended.out.splitlines()]
    assert "android-arm64" in names
    assert names == sorted(names)
    assert all(len(line.split()) > 1 for line in ended.out.splitlines())


def test_show_a_target(edge: Any) -> None:
    ended = edge("targets", "show", "android-arm64")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    for line in ("name: android-arm64", "machine:", "  isa: arm64-v8a", "  max_drop: 0.01"):
        assert line in lines
    assert any(line.startswith("  - use = quantize_int8") for line in lines)


def test_show_a_target_as_json(edge: Any, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('extends = "android-arm64"\nname = "board"\n', encoding="utf-8")
    board = str(tmp_path / "b.toml")
    first, second = (json.loads(edge("targets", "show", name, "--json").out) for name in ("android-arm64", board))
    assert first["runtime"]["version"] == "1.29.0"
    assert second == first | {"name": "board"}


# Usage: exit code 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("bulid",), "bulid"),
        (("build", "--targte", "x"), "--targte"),
        (("build", "m", "--target"), "--target"),
        (("build", "m", "n"), "n"),
        (("build", "m", "--max-drop", "much"), "--max-drop"),
        (("build", "m", "--max-drop", "-1"), "--max-drop"),
        (("targets", "show"), "argument"),
        (("targets", "list"), "list"),
        (("build", "m"), "error: build: no target"),
        (("build", "--target", "android-arm64"), "error: build: no model"),
        (("build", "m", "--target", "androd-arm64"), 'hint: did you mean "android-arm64"?'),
        (("targets", "show", "androd-arm64"), 'hint: did you mean "android-arm64"?'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage(
    edge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = edge(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert word in ended.err
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_show_the_help(edge: Any) -> None:
    ended = edge()
    assert ended.code == 2
    assert "build" in ended.out + ended.err


# What a build ends with


@pytest.mark.parametrize(
    ("kind", "code"),
    [(EdgeslimError, 1), (UsageError, 2), (BadInputError, 3), (BudgetError, 4), (MissingToolError, 5), (CheckError, 6)],
)
def test_errors_end_with_their_code(edge: Any, fake: Any, kind: type[EdgeslimError], code: int) -> None:
    fake(kind("r.toml: steps[0]", 'unknown key "methd"', expected="one of method", hint='did you mean "method"?'))
    ended = edge("build", "m")
    assert ended == Ended(
        code,
        "",
        'error: r.toml: steps[0]: unknown key "methd"\n  expected: one of method\n  hint: did you mean "method"?\n',
    )


@pytest.mark.parametrize(
    ("findings", "code", "said"),
    [
        ([GOOD], 0, ""),
        ([GOOD, UNKNOWN_DEVICE], 0, "warning: unjudged: latency.device_latency_p50_ms\n"),
        ([LARGE], 4, "error: budget: size.package_bytes 30 > 20\n"),
        ([LARGE, WORSE, GOOD, SLOW], 4, "size.package_bytes 30 > 20, accuracy.drop 0.5 > 0.01, latency.latency_ratio"),
        ([LOSSY], 6, "error: lossless.differing_bytes: the first at byte 7\n  expected: at most 0\n"),
        ([LARGE, FOREIGN], 6, "error: operators.unsupported_operators: Levitate: no kernel\n"),
    ],
)
def test_verdicts_decide_the_code(edge: Any, fake: Any, findings: list[Finding], code: int, said: str) -> None:
    fake(report(*findings))
    for options in ((), ("--json",), ("-q",)):
        ended = edge("build", "m", *options)
        assert ended.code == code
        assert said in ended.err
        assert bool(ended.err) == bool(said)
        if code:
            assert "hint: no package was written" in ended.err


@pytest.mark.parametrize("unjudged", [UNKNOWN_DEVICE, UNKNOWN_OPERATORS], ids=["device", "operators"])
def test_require_judged(edge: Any, fake: Any, unjudged: Finding) -> None:
    fake(report(GOOD, unjudged))
    assert edge("build", "m").code == 0
    ended = edge("build", "m", "--require-judged")
    assert ended.code == 4
    assert f"error: budget: unjudged: {unjudged.check}.{unjudged.metric}\n" in ended.err
    assert "expected: every limit judged" in ended.err


def test_require_judged_with_all_judged(edge: Any, fake: Any) -> None:
    fake(report(GOOD))
    assert edge("build", "m", "--require-judged").code == 0


def test_json_is_one_object_and_nothing_else(edge: Any, fake: Any) -> None:
    made = report(GOOD, LARGE)
    fake(made)
    ended = edge("build", "m", "--json")
    assert ended.code == 4
    assert json.loads(ended.out) == json.loads(made.to_json())


def test_the_table(edge: Any, fake: Any) -> None:
    fake(report(GOOD))
    ended = edge("build", "m")
    assert "package_bytes" in ended.out
    assert ended.out.splitlines()[-1] == "out/x.tar.gz (10 B); all checks passed"


def test_quiet(edge: Any, fake: Any) -> None:
    asked = fake(report(GOOD))
    assert edge("build", "m", "-q") == Ended(0, "", "")
    assert asked["progress"] is None


def test_options_reach_the_build(edge: Any, fake: Any) -> None:
    asked = fake(report(GOOD))
    ended = edge(
        *("build", "own:make", "--target", "t", "--data", "d", "--task", "k", "--recipe", "r", "--max-drop", "0.02"),
        *("--max-size", "1MB", "--max-latency", "4ms", "--name", "n", "-o", "o"),
        *("--max-instructions", "9", "--device", "qemu", "--device-samples", "3", "--device-timeout", "9s"),
    )
    assert ended.code == 0
    progress = asked.pop("progress")
    assert progress is not None
    assert asked == {
        "model": "own:make",
        "target": "t",
        "data": "d",
        "task": "k",
        "recipe": "r",
        "max_drop": 0.02,
        "max_size": "1MB",
        "max_latency": "4ms",
        "max_instructions": 9,
        "device": DeviceOptions(device="qemu", samples=3, timeout_s=9),
        "name": "n",
        "out": "o",
        "use_cache": True,
    }


def test_interrupted(edge: Any, fake: Any) -> None:
    fake(KeyboardInterrupt())
    assert edge("build", "m") == Ended(130, "", "interrupted: the output is as it was, or finished\n")


def test_an_exit_of_somebody_elses_is_passed_on(edge: Any, fake: Any) -> None:
    fake(SystemExit(7))
    with pytest.raises(SystemExit, match="7"):
        edge("build", "m")


def test_a_defect_is_called_one(edge: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESLIM_DEBUG", raising=False)
    fake(ZeroDivisionError("division by zero"))
    ended = edge("build", "m")
    assert ended.code == 1
    assert ended.err.startswith("internal error: ZeroDivisionError: division by zero\n")
    assert "hint: this is a defect of edgeslim; EDGESLIM_DEBUG=1 shows where" in ended.err


def test_a_defect_is_shown_where_it_was_asked_for(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGESLIM_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["edgeslim", "build", "m"])
    fake(ZeroDivisionError("division by zero"))
    assert cli.run() == 1
    assert "Traceback" in capsys.readouterr().err


# In a process of its own


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, mlp_onnx: Path) -> Path:
    """A folder with an ``edgeslim.toml``, as ``edgeslim build --target android-arm64`` takes it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(mlp_onnx, folder / "mlp.onnx")
    values = np.random.default_rng(9).normal(0, 1, (40, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=values)
    (folder / "edgeslim.toml").write_text('model = "mlp.onnx"\n[data]\nfile = "data.npz"\n', encoding="utf-8")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_build_as_a_user_starts_it(project: Path) -> None:
    before = names(project)
    process = spawn("build", "--target", "android-arm64", "--max-latency", "9s", "--json", folder=project)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    plain = json.loads(out)
    assert list(plain)[:5] == ["schema", "target", "artifact", "steps", "findings"]
    metrics = {item["metric"]: item for item in plain["findings"]}
    assert set(PROMISED) | {"cosine_mean", "cosine_min", "spearman", "top10_overlap"} <= set(metrics)
    for item in plain["findings"]:
        assert {"check", "metric", "value", "unit", "limit", "verdict", "where"} <= set(item)
    assert err.splitlines() == [
        "· export",
        "· quantize_int8",
        "· encode",
        "· package",
        "· checks",
        "warning: unjudged: latency.device_latency_p50_ms",
    ]
    new = names(project) - before
    assert {name.split("/")[0] for name in new} == {"out"}
    assert (project / plain["artifact"]["path"]).stat().st_size == plain["artifact"]["bytes"]
    assert json.loads((project / "out" / "android-arm64" / "report.json").read_text(encoding="utf-8")) == plain
    assert not list(project.rglob(".*"))


def test_a_missed_budget_as_a_user_meets_it(project: Path) -> None:
    process = spawn("build", "--target", "android-arm64", "--max-size", "1kB", "-o", "new/deep", folder=project)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert "fail" in out
    assert "no package was written; 1 failed: size.package_bytes" in out
    assert "error: budget: size.package_bytes" in err
    assert "Traceback" not in err
    assert not (project / "new").exists()


def test_bad_input_as_a_user_meets_it(project: Path) -> None:
    process = spawn("build", "mpl.onnx", "--target", "android-arm64", folder=project)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert err.splitlines()[0] == "error: mpl.onnx: no such model"
    assert 'hint: did you mean "mlp.onnx"?' in err


def test_ctrl_c_leaves_nothing(project: Path) -> None:
    process = spawn("build", "--target", "android-arm64", "-o", "stopped/out", folder=project)
    assert process.stderr is not None
    for line in process.stderr:
        if "checks" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.strip() == "interrupted: the output is as it was, or finished"
    assert not (project / "stopped").exists()
    assert not list(project.glob(".edgeslim-*"))


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = spawn("targets", "show", "android-arm64", folder=tmp_path, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == ""


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    command = shutil.which("edgeslim", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("edgeslim isn't installed beside this Python")
    done = subprocess.run([command, "targets"], cwd=tmp_path, capture_output=True, text=True, check=True)
    process = spawn("targets", folder=tmp_path)
    assert (done.stdout, done.stderr) == process.communicate(timeout=60)
