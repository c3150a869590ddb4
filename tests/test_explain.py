"""``--dry-run``: what would run and why, and that nothing does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgeslim
from edgeslim import final_checks
from edgeslim.errors import BadInputError
from edgeslim.explain import explain_plan
from edgeslim.project import Overrides

PROJECT = 'model = "mlp.onnx"\ntarget = "android-arm64"\n[data]\nfile = "data.npz"\n[budget]\nmax_size = "1MB"\n'


@pytest.fixture
def project(tmp_path: Path, mlp_onnx: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(mlp_onnx, folder / "mlp.onnx")
    shutil.copy(mlp_samples, folder / "data.npz")
    (folder / "edgeslim.toml").write_text(PROJECT, encoding="utf-8")
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(final_checks, "check_latency", lambda *arguments, **options: iter(()))
    monkeypatch.chdir(folder)
    return folder


def test_before_the_first_build(project: Path) -> None:
    before = sorted(project.rglob("*"))
    lines = explain_plan(Overrides(), as_json=False).splitlines()
    assert lines[0].startswith("model    mlp (onnx: mlp.onnx); 4 input files, ")
    for line in (
        "data     data.npz",
        "budget   max_drop 0.01, max_size_bytes 1e+06",
        "step     export",
        "step     checks",
    ):
        assert line in lines
    assert any(line.startswith("step     quantize_int8: QuantizeInt8(") for line in lines)
    assert lines[-2:] == ["would run, since", "  no earlier build into out/android-arm64 is known"]
    assert sorted(project.rglob("*")) == before
    assert not (project.parent / "cache").exists()


def test_after_a_build_and_after_changes(project: Path) -> None:
    edgeslim.build()
    unchanged = "nothing would run: inputs and output are those of an earlier build"
    assert explain_plan(Overrides(), as_json=False).splitlines()[-1] == unchanged
    assert explain_plan(Overrides(), as_json=False, use_cache=False).splitlines()[-1] == "  the cache is off"
    (project / "out" / "android-arm64" / "mlp.aar").write_bytes(b"edited")
    last = explain_plan(Overrides(), as_json=False).splitlines()[-1]
    assert last == "  the files in out/android-arm64 are not those of the last build"
    (project / "edgeslim.toml").write_text(PROJECT.replace("1MB", "2MB"), encoding="utf-8")
    reasons = explain_plan(Overrides(), as_json=False).splitlines()[-2:]
    assert reasons == [f"  {project / 'edgeslim.toml'} changed", "  the setting budget changed"]


def test_as_json(project: Path) -> None:
    plain = json.loads(explain_plan(Overrides(), as_json=True))
    assert plain["source"] == {"kind": "onnx", "model": "mlp.onnx", "name": "mlp"}
    assert plain["steps"] == ["export", "quantize_int8", "encode", "package", "checks"]
    assert plain["recipe"] == [{"use": "quantize_int8", "activation": "auto"}]
    assert plain["budget"] == {"max_drop": 0.01, "max_size_bytes": 1_000_000}
    inputs = {Path(path).name for path in plain["inputs"]}
    assert inputs == {"android-arm64.toml", "data.npz", "edgeslim.toml", "mlp.onnx"}
    assert (plain["unchanged"], plain["out"]) == (False, "out/android-arm64")
    edgeslim.build()
    again = json.loads(explain_plan(Overrides(), as_json=True))
    assert (again["unchanged"], again["reasons"]) == (True, [])


def test_many_reasons_are_cut(project: Path) -> None:
    edgeslim.build()
    for number in range(20):
        (project / f"LICENSE{number:02}").touch()
    lines = explain_plan(Overrides(), as_json=False).splitlines()
    assert lines[-1] == "  … and 8 more"
    assert len(json.loads(explain_plan(Overrides(), as_json=True))["reasons"]) == 20


def test_what_a_build_would_refuse(project: Path, refuses: Any) -> None:
    with refuses(BadInputError, where="mpl.onnx", got="no such model", expected="an .onnx file", hint='"mlp.onnx"'):
        explain_plan(Overrides(model="mpl.onnx", target="android-arm64"), as_json=False)
