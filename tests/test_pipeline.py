"""Whole builds of small models: what comes out, what is left alone, and what stops them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import codec, export
from edgeslim.checks import latency
from edgeslim.core import Finding, Quiet, Report
from edgeslim.errors import BadInputError, BudgetError, CheckError, EdgeslimError, MissingToolError, UsageError
from edgeslim.session import open_runner

BOARD = """\
extends = "android-arm64"
name = "board"
summary = "a Linux board"
[package]
kind = "{kind}"
"""
VERDICTS = {"pass", "fail", "unjudged", "measured"}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build: its report, the folder that it was started in, and its output."""

    report: Report
    folder: Path
    out: Path

    @property
    def package(self) -> Path:
        return Path(self.report.artifact.path)

    def finding(self, metric: str) -> Finding:
        (found,) = (item for item in self.report.findings if item.metric == metric)
        return found

    def contents(self) -> dict[str, bytes]:
        """The package's own files, without the folders that its kind puts around them."""
        if self.package.suffix == ".aar":
            prefix = f"assets/edgeslim/{self.package.stem}/"
            with zipfile.ZipFile(self.package) as archive:
                return {name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if prefix in name}
        with tarfile.open(self.package) as archive:
            return {info.name.partition("/")[2]: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]

    def manifest(self) -> dict[str, Any]:
        return json.loads(self.contents()["manifest.json"])


def listing(folder: Path) -> dict[str, bytes | None]:
    """All below ``folder``: files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Fewer runs for figures that these tests don't look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        yield patch


Build = Callable[..., Built]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds in a folder of its own. Afterwards nothing lies there but the output."""

    def run(model: str | Path, *, target: str | Path = "android-arm64", engine: str = "", **options: Any) -> Built:
        folder = tmp_path_factory.mktemp("build")
        out = folder / "made"
        with quick() as patch:
            patch.chdir(folder)
            if engine == "torch":
                patch.setattr(export, "_optimum_knows", lambda module, task: False)
            options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
            report = edgeslim.build(str(model), target=str(target), out="made", **options)
        assert [path.name for path in folder.iterdir()] == (["made"] if not report.failed() else [])
        return Built(report=report, folder=folder, out=out) if report.failed() else _placed(report, folder, out)

    return run


def _placed(report: Report, folder: Path, out: Path) -> Built:
    path = folder / report.artifact.path
    moved = Report(**{**vars(report), "artifact": type(report.artifact)(path=str(path), bytes=report.artifact.bytes)})
    assert path.stat().st_size == report.artifact.bytes
    return Built(report=moved, folder=folder, out=out)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Target files of one's own: the board takes a ``tar`` or an ``aar``."""
    folder = tmp_path_factory.mktemp("boards")
    for kind in ("tar", "aar"):
        (folder / f"{kind}.toml").write_text(BOARD.format(kind=kind), encoding="utf-8")
    return {kind: folder / f"{kind}.toml" for kind in ("tar", "aar")}


@pytest.fixture(scope="module")
def encoder(build: Build, tiny_bert: Path, text_files: Any) -> Built:
    return build(tiny_bert, data=text_files.txt, max_latency="40ms", max_size="1MB")


@pytest.fixture(scope="module")
def encoder_by_torch(build: Build, tiny_bert: Path, text_files: Any, boards: dict[str, Path]) -> Built:
    return build(tiny_bert, data=text_files.txt, target=boards["tar"], engine="torch", name="By Torch")


@pytest.fixture(scope="module")
def classifier(build: Build, tiny_classifier: Path, text_files: Any) -> Built:
    return build(tiny_classifier, data=text_files.csv)


@pytest.fixture(scope="module")
def mlp(build: Build, mlp_onnx: Path, mlp_samples: Path) -> Built:
    return build(mlp_onnx, data=mlp_samples)


@pytest.fixture(params=["encoder", "encoder_by_torch", "classifier", "mlp"])
def any_build(request: pytest.FixtureRequest) -> Built:
    return request.getfixturevalue(request.param)


# What every build has in common


def test_the_report_says_what_the_issue_promises(any_build: Built) -> None:
    plain = json.loads(any_build.report.to_json())
    assert plain["schema"] == 1
    assert set(plain["artifact"]) == {"path", "bytes"}
    assert [step["name"] for step in plain["steps"]] == ["export", "quantize_int8", "encode", "package"]
    for step in plain["steps"]:
        told = {"name", "seconds", "changed", "bytes", "skipped", "metrics", "cached", "engine"}
        assert set(step) == told | {"before", "after", "unchanged", "measured_on"}
        assert step["changed"] > 0
        assert step["bytes"] > 0
    (stage,) = (step for step in plain["steps"] if step["name"] == "quantize_int8")
    assert set(stage["before"]) == set(stage["after"]) == {"bytes", "download_bytes", "latency_ms", "drop"}
    assert stage["before"]["drop"] == 0
    assert stage["after"]["bytes"] == stage["bytes"] < stage["before"]["bytes"]
    assert set(stage["unchanged"]) <= {"latency_ms", "drop"}
    for finding in plain["findings"]:
        assert {"check", "metric", "value", "unit", "limit", "verdict", "where"} <= set(finding)
        assert finding["verdict"] in VERDICTS
        assert finding["where"]
    metrics = {finding["metric"] for finding in plain["findings"]}
    assert metrics >= {"package_bytes", "latency_p50_ms", "latency_ratio", "load_ms", "peak_memory_bytes", "drop"}
    assert metrics >= {"differing_bytes", "unsupported_operators", "download_bytes", "installed_bytes"}
    assert len({(finding["check"], finding["metric"]) for finding in plain["findings"]}) == len(plain["findings"])
    assert plain["environment"]["edgeslim"] == edgeslim.__version__


def test_report_json_lies_beside_the_package(any_build: Built) -> None:
    written = json.loads((any_build.out / "report.json").read_text(encoding="utf-8"))
    returned = json.loads(any_build.report.to_json())
    assert written["artifact"]["bytes"] == returned["artifact"]["bytes"]
    assert {key: written[key] for key in ("target", "steps", "findings", "notes")} == {
        key: returned[key] for key in ("target", "steps", "findings", "notes")
    }


def test_sizes_are_those_of_the_files(any_build: Built) -> None:
    contents = any_build.contents()
    assert any_build.finding("package_bytes").value == any_build.package.stat().st_size
    assert any_build.finding("packed_bytes").value == len(contents["weights.esz"])
    assert any_build.finding("weights_bytes").value == any_build.manifest()["files"]["weights.bin"]["bytes"]


def test_the_package_holds_what_its_manifest_says(any_build: Built) -> None:
    contents, manifest = any_build.contents(), any_build.manifest()
    assert set(manifest["files"]) == (set(contents) | {"weights.bin"}) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        if name != "weights.bin":
            assert entry == {"bytes": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
    assert manifest["schema"] == 1
    assert manifest["target"] == any_build.report.target
    assert manifest["edgeslim"] == edgeslim.__version__
    assert manifest["runtime"] == {
        "name": "onnxruntime",
        "version": "1.29.0",
        "providers": ["CPUExecutionProvider"],
        "threads": 1,
        "opset_max": 21,
        "loading": "file",
    }
    assert manifest["machine"] == {"isa": "arm64-v8a", "features": ["neon", "dotprod"]}
    assert manifest["recipe"] == [{"use": "quantize_int8", "activation": "auto"}]


def test_the_package_runs_from_what_it_holds(any_build: Built, tmp_path: Path) -> None:
    """As a device does it: decode the weights beside the graph, compare the hash, open, run."""
    contents, manifest = any_build.contents(), any_build.manifest()
    for name in ("model.onnx", "weights.esz"):
        (tmp_path / name).write_bytes(contents[name])
    codec.decode_file(tmp_path / "weights.esz", tmp_path / "weights.bin")
    assert (
        hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest()
        == (manifest["files"]["weights.bin"]["sha256"])
    )
    runner = open_runner(tmp_path / "model.onnx")
    assert runner.signature() == manifest["signature"]
    shapes = {
        item["name"]: [2 if dim is None else dim for dim in item["shape"]] for item in runner.signature()["inputs"]
    }  # type: ignore[union-attr, index]
    types = {item["name"]: np.int64 if "int64" in item["type"] else np.float32 for item in runner.signature()["inputs"]}  # type: ignore[operator]
    outputs = runner({name: np.ones(shape, types[name]) for name, shape in shapes.items()})
    assert all(np.isfinite(value).all() for value in outputs.values())


def test_nothing_of_the_building_machine_gets_into_the_package(any_build: Built) -> None:
    here = {str(any_build.folder.parent), str(Path.home()), os.uname().nodename, sys.prefix}
    for name, content in any_build.contents().items():
        assert not [text for text in here if len(text) > 5 and text.encode() in content], name


def test_weights_are_stored_in_eight_bits(any_build: Built) -> None:
    step = any_build.report.steps[1]
    assert step.metrics["linear_layers"] >= 2
    assert any_build.finding("weights_bytes").value < 0.45 * any_build.report.steps[0].bytes  # type: ignore[operator]


# Sources, engines, tasks


@pytest.mark.parametrize("which", ["encoder", "encoder_by_torch"])
def test_feature_extraction(which: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(which)
    assert 0.99 < built.finding("cosine_mean").value <= 1  # type: ignore[operator]
    assert 0.95 < built.finding("cosine_min").value <= 1  # type: ignore[operator]
    assert 0.9 < built.finding("spearman").value <= 1  # type: ignore[operator]
    assert 0.7 < built.finding("top10_overlap").value <= 1  # type: ignore[operator]
    drop = built.finding("drop")
    assert (drop.verdict, drop.limit, drop.where) == ("pass", 0.01, "host, 40 samples")
    task = {"task": "feature-extraction", "pooling": "mean", "normalize": True, "output": None}
    assert built.manifest()["task"] == task
    assert built.manifest()["tokenizer"] == {"folder": "tokenizer", "max_length": 128}
    assert built.manifest()["source"] == {"model": "Tiny_BERT", "licence": "apache-2.0"}
    assert {"tokenizer/tokenizer.json", "LICENSE"} <= set(built.contents())
    assert built.report.steps[0].metrics["export_max_abs_diff"] < 1e-3
    # Skipped is what has no weight or too small a one, and nothing else.
    assert {reason.split(" ")[0] for reason in built.report.steps[1].skipped.values()} <= {"both", "its"}


def test_text_classification(classifier: Built, tiny_classifier: Path) -> None:
    assert classifier.finding("accuracy").value == 1.0
    assert classifier.finding("accuracy_reference").value == 1.0
    assert classifier.finding("f1").value == 1.0
    assert classifier.finding("agreement").value == 1.0
    assert classifier.finding("drop").verdict == "pass"
    assert "40 labelled samples" in classifier.finding("drop").note
    assert classifier.manifest()["task"] == {"task": "text-classification", "labels": ["bad", "good"]}
    assert [item["name"] for item in classifier.manifest()["signature"]["outputs"]] == ["logits"]


def test_a_classifier_without_labels_is_measured_by_agreement(
    build: Build, tiny_classifier: Path, text_files: Any
) -> None:
    built = build(tiny_classifier, data=text_files.txt)
    assert built.finding("agreement").value == 1.0
    assert "no labels" in built.finding("drop").note
    assert "accuracy" not in {finding.metric for finding in built.report.findings}


def test_onnx_weights_inline_and_external_make_the_same(
    build: Build, mlp: Built, mlp_external: Path, mlp_samples: Path
) -> None:
    external = build(mlp_external, data=mlp_samples, name="mlp")
    assert external.contents()["weights.esz"] == mlp.contents()["weights.esz"]
    assert external.contents()["model.onnx"] == mlp.contents()["model.onnx"]
    assert mlp.manifest()["task"]["task"] == "feature-extraction"
    assert mlp.manifest()["tokenizer"] is None
    assert mlp.finding("cosine_mean").value > 0.99  # type: ignore[operator]


def test_a_text_model_as_onnx_with_its_tokenizer_beside(
    build: Build, tiny_bert: Path, text_files: Any, tmp_path: Path, boards: dict[str, Path]
) -> None:
    from edgeslim.core import Batch
    from edgeslim.source import load_huggingface, resolve_source

    ids = np.array([[2, 40, 41, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    module = load_huggingface(resolve_source(str(tiny_bert)), classifier=False)
    made = export.export_huggingface(
        module, [Batch(feed=feed, rows=1)], classifier=False, opset_max=18, folder=tmp_path / "text"
    )
    shutil.copy(tiny_bert / "tokenizer.json", made.path.parent)
    shutil.copy(tiny_bert / "tokenizer_config.json", made.path.parent)
    built = build(made.path, data=text_files.txt, target=boards["tar"])
    assert built.finding("cosine_mean").value > 0.99  # type: ignore[operator]
    assert "tokenizer/tokenizer.json" in built.contents()


def test_own_code_on_its_example_inputs_alone(
    build: Build, own_module: Path, monkeypatch: pytest.MonkeyPatch, boards: dict[str, Path]
) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    built = build("own_net:make", target=boards["tar"])
    assert built.package.name == "make.tar.gz"
    drop = built.finding("drop")
    assert (drop.verdict, drop.limit) == ("unjudged", 0.01)
    assert "give data of your own" in drop.note
    assert any("no data given" in note for note in built.report.notes)
    assert built.manifest()["source"] == {"model": "own_net:make", "licence": None}


def test_own_code_with_data_and_a_metric_of_ones_own(
    build: Build, own_module: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    built = build("own_net:make_dynamic", data=mlp_samples, task="own_net:relative_error", max_drop=0.2, name="net")
    drop, error = built.finding("drop"), built.finding("worst_relative_error")
    assert drop.verdict == "pass"
    assert drop.note == "drop as own_net:relative_error computes it"
    assert drop.value == error.value
    assert 0 < drop.value < 0.2  # type: ignore[operator]
    assert built.manifest()["task"] == {"task": "custom", "metric": "own_net:relative_error"}
    assert built.manifest()["signature"]["inputs"][0]["shape"] == [None, 16]


def test_without_data_the_report_says_whose_text_it_was(build: Build, tiny_bert: Path) -> None:
    built = build(tiny_bert)
    assert any("Python's own manual" in note for note in built.report.notes)
    assert built.finding("samples").value == 200.0


# Targets, packages, budgets


def test_an_android_package_and_its_maven_repository(encoder: Built) -> None:
    assert encoder.package == encoder.out / "tiny-bert.aar"
    with zipfile.ZipFile(encoder.package) as archive:
        names = set(archive.namelist())
    assert {"AndroidManifest.xml", "classes.jar", "proguard.txt", "assets/edgeslim/tiny-bert/weights.esz"} <= names
    folder = encoder.out / "maven" / "io" / "edgeslim" / "models" / "tiny-bert" / "1.0.0"
    assert (folder / "tiny-bert-1.0.0.aar").read_bytes() == encoder.package.read_bytes()
    assert "<version>1.29.0</version>" in (folder / "tiny-bert-1.0.0.pom").read_text(encoding="utf-8")
    assert encoder.manifest()["min_sdk"] == 24


def test_a_board_of_ones_own_takes_a_tarball(encoder_by_torch: Built) -> None:
    assert encoder_by_torch.package == encoder_by_torch.out / "by-torch.tar.gz"
    names = sorted(path.name for path in encoder_by_torch.out.iterdir())
    assert names == ["by-torch.tar.gz", "report.html", "report.json"]
    assert encoder_by_torch.report.target == "board"
    assert encoder_by_torch.manifest()["min_sdk"] is None


def test_a_board_of_ones_own_takes_an_aar(build: Build, mlp_onnx: Path, mlp_samples: Path, boards: Any) -> None:
    built = build(mlp_onnx, data=mlp_samples, target=boards["aar"])
    assert built.package.name == "mlp.aar"
    assert built.manifest()["target"] == "board"


def test_a_devices_latency_is_unjudged_without_a_device(encoder: Built) -> None:
    latency_finding = encoder.finding("device_latency_p50_ms")
    assert (latency_finding.value, latency_finding.limit, latency_finding.verdict) == (None, 40.0, "unjudged")
    assert latency_finding.where == "device"
    assert encoder.report.failed() == ()
    assert any("no device was given" in note for note in encoder.report.notes)
    for metric in ("latency_p50_ms", "latency_ratio", "load_ms", "peak_memory_bytes"):
        assert encoder.finding(metric).where.startswith("host: ")


def test_limits_of_the_command_line_are_judged(encoder: Built) -> None:
    size = encoder.finding("package_bytes")
    assert (size.limit, size.verdict) == (1_000_000, "pass")


def test_a_recipe_of_ones_own(build: Build, mlp_onnx: Path, mlp_samples: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[steps]]\nuse = "quantize_int8"\nform = "qdq"\nkeep_float = ["layer_2"]\n', encoding="utf-8")
    built = build(mlp_onnx, data=mlp_samples, recipe=recipe)
    step = built.report.steps[1]
    assert (step.name, step.changed) == ("quantize_int8", 1)
    assert step.skipped == {"layer_2": "kept float by the recipe"}
    assert built.manifest()["recipe"] == [{"use": "quantize_int8", "form": "qdq", "keep_float": ["layer_2"]}]


def test_a_recipe_without_steps_packs_the_float_model(
    build: Build, mlp_onnx: Path, mlp_samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text("steps = []\n", encoding="utf-8")
    built = build(mlp_onnx, data=mlp_samples, recipe=tmp_path / "r.toml")
    assert [step.name for step in built.report.steps] == ["export", "encode", "package"]
    assert built.finding("drop").value == pytest.approx(0, abs=1e-9)


PROJECT = """\
model = "models/mlp.onnx"
name = "My Net"
target = "board.toml"
out = "made"

[data]
calibration = "a.npz"
evaluation = "b.npz"

[budget]
max_drop = 0.05
max_size = "1MB"
max_peak_memory = "1GB"
"""


@pytest.fixture
def project(tmp_path: Path, mlp_onnx: Path, boards: dict[str, Path]) -> Path:
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(mlp_onnx, folder / "models")
    shutil.copy(boards["tar"], folder / "board.toml")
    values = np.random.default_rng(9).normal(0, 1, (40, 16)).astype(np.float32)
    np.savez(folder / "a.npz", x=values[:15])
    np.savez(folder / "b.npz", x=values[15:])
    (folder / "edgeslim.toml").write_text(PROJECT, encoding="utf-8")
    return folder


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


# What stops a build


def spoilt_classifier(folder: Path, tiny_classifier: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_classifier, folder / "spoilt")
    weights = load_file(folder / "spoilt" / "model.safetensors")
    next(iter(weights.values())).flat[0] = np.nan
    save_file(weights, folder / "spoilt" / "model.safetensors", metadata={"format": "pt"})
    return folder / "spoilt"


class Stopping(Quiet):
    """Raises when the step that is named begins."""

    def __init__(self, step: str, error: BaseException) -> None:
        self._step = step
        self._error = error

    def step(self, what: str) -> None:
        if what == self._step:
            raise self._error


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; after the build that must fail in it, it is as empty as before."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert listing(folder) == {}, "a failed build left something behind"


def test_files_that_are_no_models(failing: Path, tmp_path: Path, mlp_onnx: Path, mlp_samples: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(mlp_onnx.read_bytes()[:-100])
    for model, kind in [
        ("gone.onnx", BadInputError),
        (str(cut), BadInputError),
        (str(mlp_samples), BadInputError),
        ("pkg://no_such_package/model", MissingToolError),
        ("no_such_module:make", BadInputError),
    ]:
        with pytest.raises(kind) as caught:
            edgeslim.build(model, target="android-arm64", data=str(mlp_samples))
        assert caught.value.expected or caught.value.hint


@pytest.mark.parametrize("step", ["export", "quantize_int8", "encode", "package", "checks"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")], ids=["interrupt", "defect"])
def test_a_build_that_is_stopped(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, step: str, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), progress=Stopping(step, error))


def test_a_full_disk(failing: Path, mlp_onnx: Path, mlp_samples: Path, refuses: Any) -> None:
    full = Stopping("package", OSError(28, "No space left on device", "/somewhere/x"))
    with refuses(BadInputError, where="/somewhere/x", got="No space left on device", expected="room"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), progress=full)


def test_weights_that_are_not_finite(
    failing: Path, tmp_path: Path, tiny_classifier: Path, text_files: Any, refuses: Any
) -> None:
    model = spoilt_classifier(tmp_path, tiny_classifier)
    with refuses(BadInputError, where="tensor", got="weights are NaN or infinite", expected="finite", hint="sound"):
        edgeslim.build(str(model), target="android-arm64", data=str(text_files.csv))


def test_an_encoder_is_no_classifier(failing: Path, tiny_bert: Path, text_files: Any, refuses: Any) -> None:
    with refuses(
        BadInputError,
        where="Tiny_BERT",
        got="BertModel has no classification head",
        expected="sequence classification",
        hint="feature-extraction",
    ):
        edgeslim.build(str(tiny_bert), target="android-arm64", task="text-classification", data=str(text_files.csv))


@pytest.mark.parametrize(
    ("options", "kind", "where"),
    [
        ({"task": "text-clasification"}, UsageError, "task"),
        ({"task": "no_such_module:metric"}, BadInputError, "task no_such_module:metric"),
        ({"target": "toaster"}, UsageError, "--target"),
        ({"recipe": "gone.toml"}, BadInputError, "gone.toml"),
        ({"data": "gone.npz"}, BadInputError, "gone.npz"),
        ({"data": "gone.txt"}, BadInputError, "data"),
        ({"max_size": "1 furlong"}, BadInputError, "--max-size"),
        ({"max_latency": "soon"}, BadInputError, "--max-latency"),
    ],
    ids=lambda value: next(iter(value.items()))[1] if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, options: dict[str, str], kind: type[EdgeslimError], where: str,
    refuses: Any,
) -> None:  # fmt: skip
    given = {"target": "android-arm64", "data": str(mlp_samples)} | options
    with refuses(kind, where=where, got=""):
        edgeslim.build(str(mlp_onnx), **given)


def test_calibration_text_in_the_evaluation_data_is_refused(
    failing: Path, tmp_path: Path, tiny_bert: Path, refuses: Any
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one fine day\nanother day\n", encoding="utf-8")
    (folder / "b.txt").write_text("a poor day\nOne fine  day\n", encoding="utf-8")
    text = f'model = "{tiny_bert}"\ntarget = "android-arm64"\n[data]\ncalibration = "a.txt"\nevaluation = "b.txt"\n'
    (folder / "edgeslim.toml").write_text(text, encoding="utf-8")
    before = listing(folder)
    with refuses(BadInputError, where="a.txt, b.txt", got="1 texts stand in both", expected="share nothing"):
        edgeslim.build(folder=folder)
    assert listing(folder) == before


def test_a_metric_of_ones_own_that_raises(
    failing: Path, own_module: Path, mlp_onnx: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_module / "own_net.py").write_text("def broken(a, b, batches):\n    return 1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(own_module))
    with quick(), pytest.raises(BadInputError, match="own_net:broken: it raised ZeroDivisionError"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), task="own_net:broken")


def test_an_export_that_differs_stops_before_anything_else(failing: Path, tmp_path: Path, refuses: Any) -> None:
    code = "import torch\nclass N(torch.nn.Module):\n    def forward(self, x): return x + torch.rand_like(x)\n"
    (tmp_path / "noisy_net.py").write_text(code + "def make(): return N(), torch.ones(1, 4)\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setattr(sys, "dont_write_bytecode", True)
        with refuses(CheckError, where="export", got="outputs differ", expected="at most 0.001"):
            edgeslim.build("noisy_net:make", target="android-arm64", progress=Stopping("quantize_int8", SystemExit(9)))
    sys.modules.pop("noisy_net", None)


def test_an_output_that_is_a_file(tmp_path: Path, mlp_onnx: Path, mlp_samples: Path, refuses: Any) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for out, where in ((tmp_path / "taken", "taken"), (tmp_path / "taken" / "below", "taken/below")):
        with refuses(BadInputError, where=str(tmp_path / where), got="", expected="a folder"):
            edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), out=str(out))
    assert listing(tmp_path) == {"taken": b"mine"}


def test_an_output_that_cannot_be_written(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # nothing is read-only for root, who may run this
    with refuses(BadInputError, where="out/x", got="can't write here", expected="a folder that can be written"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), out="out/x")


def test_the_order_of_steps_is_told(project: Path) -> None:
    told: list[str] = []

    class Telling(Quiet):
        def step(self, what: str) -> None:
            told.append(what)

    with quick():
        edgeslim.build(folder=project, progress=Telling())
    assert told == ["export", "quantize_int8", "encode", "package", "checks"]
