"""Builds of a project in a folder: what is the same each time, what stays as it was, and a size as a goal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from building import PROJECT, Build, Built, listing, quick

import edgeslim
from edgeslim.core import Quiet
from edgeslim.errors import BudgetError


def test_a_project_in_a_folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = listing(project)
    with quick():
        report = edgeslim.build(folder=project)
    after = listing(project)
    made = {"made", "made/my-net.tar.gz", "made/report.html", "made/report.json"}
    assert {name for name in after if name not in before} == made
    assert {name: after[name] for name in before} == before
    assert list(elsewhere.iterdir()) == []
    assert report.artifact.path == str(project / "made" / "my-net.tar.gz")
    limits = {finding.metric: (finding.limit, finding.verdict) for finding in report.findings if finding.limit}
    assert limits["drop"] == (0.05, "pass")
    assert limits["package_bytes"] == (1_000_000, "pass")
    assert limits["peak_memory_bytes"] == (1_000_000_000, "pass")
    assert ["calibration data is little (15 samples)" in note for note in report.notes] == [True]


def test_a_projects_own_code_and_metric_are_found_in_its_folder(
    own_module: Path, mlp_samples: Path, boards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'model = "own_net:make_dynamic"\ntask = "own_net:relative_error"\ntarget = "{boards["tar"]}"\n'
    text += f'out = "made"\n[data]\nfile = "{mlp_samples}"\n[budget]\nmax_drop = 0.2\n'
    (own_module / "edgeslim.toml").write_text(text, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with quick():
        report = edgeslim.build(folder=own_module)
    assert "worst_relative_error" in {finding.metric for finding in report.findings}


# Same inputs, same bytes; what lies there stays


def test_two_builds_in_two_folders_give_the_same_bytes(
    build: Build, encoder: Built, tiny_bert: Path, text_files: Any, tmp_path: Path
) -> None:
    model = tmp_path / "elsewhere" / tiny_bert.name
    shutil.copytree(tiny_bert, model)
    data = shutil.copy(text_files.txt, tmp_path / "other-name.txt")
    again = build(model, data=Path(data), max_latency="40ms", max_size="1MB")
    assert again.folder != encoder.folder
    assert again.contents() == encoder.contents()
    assert again.package.read_bytes() == encoder.package.read_bytes()


def test_two_tarballs_are_the_same_bytes(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(project, other)
    with quick():
        first, second = (edgeslim.build(folder=folder) for folder in (project, other))
    assert Path(first.artifact.path).read_bytes() == Path(second.artifact.path).read_bytes()


def test_torchs_exporter_gives_the_same_bytes_too(
    build: Build, own_module: Path, monkeypatch: pytest.MonkeyPatch, boards: dict[str, Path]
) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    first, second = (build("own_net:make", target=boards["tar"]) for _ in range(2))
    assert first.package.read_bytes() == second.package.read_bytes()


def test_other_files_in_the_output_folder_stay(project: Path) -> None:
    out = project / "made"
    (out / "deep").mkdir(parents=True)
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    (out / "deep" / "mine.txt").write_text("mine too", encoding="utf-8")
    (out / "my-net.tar.gz").write_bytes(b"an older build")
    with quick():
        report = edgeslim.build(folder=project)
    after = listing(out)
    assert after["mine.txt"] == b"mine"
    assert after["deep/mine.txt"] == b"mine too"
    assert len(after["my-net.tar.gz"] or b"") == report.artifact.bytes
    assert set(after) == {"deep", "deep/mine.txt", "mine.txt", "my-net.tar.gz", "report.html", "report.json"}


@pytest.mark.parametrize(
    ("budget", "metric"),
    [
        ("max_size = '1kB'", "package_bytes"),
        ("max_drop = 0.0", "drop"),
        ("max_peak_memory = '1kB'", "peak_memory_bytes"),
    ],
)
def test_a_missed_budget_leaves_everything_as_it_was(project: Path, budget: str, metric: str) -> None:
    text = PROJECT[: PROJECT.index("[budget]")] + f"[budget]\n{budget}\n"
    (project / "edgeslim.toml").write_text(text, encoding="utf-8")
    out = project / "made"
    out.mkdir()
    (out / "my-net.tar.gz").write_bytes(b"an older build that kept its budget")
    (out / "report.json").write_text("{}", encoding="utf-8")
    before = listing(project)
    with quick():
        report = edgeslim.build(folder=project)
    assert [finding.metric for finding in report.failed()] == [metric]
    assert listing(project) == before


def test_a_missed_budget_leaves_no_new_folder(build: Build, mlp_onnx: Path, mlp_samples: Path) -> None:
    built = build(mlp_onnx, data=mlp_samples, max_size="1kB")
    assert built.finding("package_bytes").verdict == "fail"


# A size as a goal


def test_a_budget_that_plain_int8_exceeds_is_met(build: Build, tiny_bert: Path, text_files: Any, failing: Path) -> None:
    plain = build(tiny_bert, data=text_files.txt)
    weights, package = len(plain.contents()["weights.esz"]), plain.package.stat().st_size
    limit = package - weights // 4
    built = build(tiny_bert, data=text_files.txt, max_size=f"{limit}B", max_drop=0.5)
    assert 0.95 * limit < built.package.stat().st_size <= limit
    steps = {step.name: step.metrics for step in built.report.steps}
    assert steps["quantize_int8"]["storage_bits"] < 8
    assert steps["quantize_int8"]["packed_bytes"] == steps["encode"]["packed_bytes"]
    assert built.finding("drop").value < 0.05
    with pytest.raises(BudgetError, match=r"at least [\d,]+ bytes \(1.25 bits a weight\)"):
        edgeslim.build(
            str(tiny_bert), target="android-arm64", data=str(text_files.txt), max_size=f"{package - weights + 900}B"
        )
    assert not list(failing.iterdir())


def test_the_order_of_steps_is_told(project: Path) -> None:
    told: list[str] = []

    class Telling(Quiet):
        def step(self, what: str) -> None:
            told.append(what)

    with quick():
        edgeslim.build(folder=project, progress=Telling())
    assert told == ["export", "quantize_int8", "encode", "package", "checks"]
