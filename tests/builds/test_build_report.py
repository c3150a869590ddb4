"""Whole builds of small models: what their report and their package say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import Build, Built

import edgeslim
from edgeslim import codec, export
from edgeslim.session import open_runner

VERDICTS = {"pass", "fail", "unjudged", "measured"}


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
