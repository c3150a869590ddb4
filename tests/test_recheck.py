"""``edgeslim check``: finished packages, whole and damaged in every way."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import cli
from edgeslim.checks import latency, package
from edgeslim.core import Report

BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'


@pytest.fixture(autouse=True)
def _quick_and_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Fewer runs for figures that these tests don't look at; and nothing may stay in the folder for temporary files."""
    monkeypatch.setattr(latency, "PROBES", 1)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class Made:
    """A package, and the report of the build that made it."""

    path: Path
    report: Report

    def value(self, metric: str) -> float | None:
        return next(item.value for item in self.report.findings if item.metric == metric)


def build(model: Path, folder: Path, **options: Any) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        report = edgeslim.build(str(model), out=str(folder / "out"), use_cache=False, **options)
    return Made(path=Path(report.artifact.path), report=report)


@pytest.fixture(scope="module")
def classifier(tiny_classifier: Path, text_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("classifier")
    return build(tiny_classifier, folder, target="android-arm64", data=str(text_files.csv))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def mlp(mlp_onnx: Path, mlp_samples: Path, board: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return build(mlp_onnx, tmp_path_factory.mktemp("mlp"), target=str(board), data=str(mlp_samples))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs ``edgeslim check`` in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgeslim", "check", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        code = cli.run()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        assert "internal error" not in written.err
        return Ended(code, written.out, written.err)

    return run


def findings(ended: Ended) -> dict[str, dict[str, Any]]:
    return {item["metric"]: item for item in json.loads(ended.out)["findings"]}


# Whole packages


def test_a_classifier_with_labelled_data(check: Any, classifier: Made, text_files: Any) -> None:
    before = classifier.path.read_bytes()
    ended = check(classifier.path, "--data", text_files.csv, "--json", "-q")
    assert (ended.code, ended.err) == (0, "")
    plain, found = json.loads(ended.out), findings(ended)
    assert (plain["schema"], plain["target"], plain["steps"]) == (1, "android-arm64", [])
    assert plain["artifact"] == {"path": str(classifier.path), "bytes": len(before)}
    for metric in ("wrong_files", "differing_hashes", "wrong_tensors", "unsupported_operators", "opset", "ir_version"):
        assert found[metric]["verdict"] == "pass", metric
    assert (found["drop"]["value"], found["drop"]["limit"], found["drop"]["verdict"]) == (0.0, 0.01, "pass")
    assert found["drop"]["where"] == "host, 40 samples of which the package holds the float model's outputs"
    assert (found["accuracy"]["value"], found["f1"]["value"]) == (1.0, 1.0)
    assert found["agreement"]["value"] == classifier.value("agreement")
    assert [item["metric"] for item in plain["findings"]].count("accuracy") == 1
    # The file that the build split: only what it held out counts.
    assert found["accuracy"]["where"] == "host, 40 samples"
    assert "is what the build split" in plain["notes"][0]
    for metric in ("package_bytes", "packed_bytes", "weights_bytes", "installed_bytes", "download_bytes"):
        assert found[metric]["value"] == classifier.value(metric), metric
    assert "latency_ratio" not in found
    assert found["latency_p50_ms"]["value"] > 0
    assert "rounds alone" in found["latency_p50_ms"]["note"]
    assert found["load_ms"]["value"] > 0
    assert found["peak_memory_bytes"]["where"].startswith("host: ")
    assert classifier.path.read_bytes() == before


def test_all_of_another_file_is_used(check: Any, classifier: Made, labelled_texts: Any, tmp_path: Path) -> None:
    rows = [*labelled_texts[:9], (labelled_texts[9][0], "bad" if labelled_texts[9][1] == "good" else "good")]
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    found = findings(check(classifier.path, "--data", path, "--json", "-q"))
    assert (found["accuracy"]["value"], found["samples"]["value"]) == (0.9, 10.0)


def test_one_sample_is_enough(check: Any, classifier: Made, labelled_texts: Any, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(f"text,label\n{labelled_texts[0][0]},{labelled_texts[0][1]}\n", encoding="utf-8")
    found = findings(check(classifier.path, "--data", tmp_path / "one.csv", "--json", "-q"))
    assert found["accuracy"]["where"] == "host, 1 samples"


def test_with_its_reference_the_figures_are_those_of_the_build(
    check: Any, classifier: Made, tiny_classifier: Path, text_files: Any
) -> None:
    ended = check(classifier.path, "--data", text_files.csv, "--reference", tiny_classifier, "--json", "-q")
    assert (ended.code, ended.err) == (0, "")
    found = findings(ended)
    for metric in ("drop", "accuracy", "accuracy_reference", "agreement", "f1", "samples"):
        assert found[metric]["value"] == classifier.value(metric), metric
    assert found["drop"]["verdict"] == "pass"
    assert found["latency_ratio"]["value"] > 0
    assert found["latency_reference_p50_ms"]["value"] > 0


def test_a_tarball_for_a_target_that_only_its_manifest_knows(check: Any, mlp: Made, mlp_samples: Path) -> None:
    ended = check(mlp.path, "--data", mlp_samples, "--json", "-q")
    assert (ended.code, ended.err) == (0, "")
    plain, found = json.loads(ended.out), findings(ended)
    assert plain["target"] == "board"
    assert found["opset"]["limit"] == 21
    assert found["download_bytes"]["value"] == mlp.path.stat().st_size
    # Without the float model: the package holds what it said of the samples that the build held out.
    for metric in ("drop", "cosine_mean", "spearman", "samples"):
        assert found[metric]["value"] == pytest.approx(mlp.value(metric), abs=1e-5), metric


def test_vectors_beside_their_reference(check: Any, mlp: Made, mlp_onnx: Path, mlp_samples: Path) -> None:
    ended = check(mlp.path, "--data", mlp_samples, "--reference", mlp_onnx, "--max-drop", "0.01", "--json", "-q")
    assert ended.code == 0
    found = findings(ended)
    assert found["drop"]["verdict"] == "pass"
    for metric in ("drop", "cosine_mean", "spearman", "samples"):
        assert found[metric]["value"] == pytest.approx(mlp.value(metric), rel=1e-6), metric


def test_without_data(check: Any, mlp: Made) -> None:
    ended = check(mlp.path, "--json", "-q")
    assert ended.code == 0
    assert json.loads(ended.out)["notes"] == ["no data given: run on one made-up input (--data FILE)"]
    assert "x [1, 16]" in findings(ended)["latency_p50_ms"]["note"]


def test_the_table(check: Any, mlp: Made) -> None:
    ended = check(mlp.path)
    assert ended.out.splitlines()[0] == "edgeslim check for board"
    assert ended.out.splitlines()[-1].endswith("; all checks passed")
    assert "no package was written" not in ended.out
    assert [line.split()[1] for line in ended.err.splitlines()] == ["unpack", "decode", "checks"]
    assert check(mlp.path, "-q") == Ended(0, "", "")


def test_a_renamed_package(check: Any, mlp: Made, tmp_path: Path) -> None:
    path = tmp_path / "download(1)"
    path.write_bytes(mlp.path.read_bytes())
    assert check(path, "-q").code == 0


# Limits


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--max-size", "1kB"], 4, "error: budget: size.package_bytes"),
        (["--max-size", "1MB"], 0, ""),
        (["--max-latency", "40ms"], 0, "warning: unjudged: latency.device_latency_p50_ms"),
        (["--max-latency", "40ms", "--require-judged"], 4, "unjudged: latency.device_latency_p50_ms"),
        (["--max-drop", "0.5"], 0, "warning: unjudged: accuracy.drop"),
        (["--max-drop", "0.5", "--require-judged"], 4, "unjudged: accuracy.drop"),
        (["--max-drop", "0", "--reference", "MLP", "--data", "SAMPLES"], 4, "error: budget: accuracy.drop"),
        (["--require-judged"], 0, ""),
        (["--max-size", "much"], 3, "error: --max-size: 'much'"),
        (["--max-drop", "-1"], 2, "--max-drop"),
        (["--target", "android-arm46"], 2, 'did you mean "android-arm64"?'),
        (["--target", "android-arm64"], 0, "warning: unjudged: accuracy.drop"),
        (["--reference", "nowhere"], 3, "error: nowhere: no such model"),
        (["--data", "nowhere.npz"], 3, "nowhere.npz: no such file"),
        (["--data", "nowhere.txt"], 3, "and the package has no tokenizer"),
        (["another"], 2, "another"),
    ],
)
def test_limits_and_usage(
    check: Any, mlp: Made, mlp_onnx: Path, mlp_samples: Path, arguments: list[str], code: int, said: str
) -> None:
    named = {"MLP": mlp_onnx, "SAMPLES": mlp_samples}
    ended = check(mlp.path, "-q", *(named.get(item, item) for item in arguments))
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert bool(said) == bool(ended.err)
    if code == 4 and "size" in said:
        assert "hint: the package is left as it is" in ended.err


def test_a_target_that_lacks_what_the_model_needs(check: Any, mlp: Made, tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(BOARD + "[runtime]\nopset_max = 7\n", encoding="utf-8")
    ended = check(mlp.path, "--target", tmp_path / "old.toml", "-q")
    assert ended.code == 6
    assert "error: operators.opset" in ended.err


def test_a_reference_with_other_inputs(check: Any, mlp: Made, tiny_bert: Path, text_files: Any) -> None:
    ended = check(mlp.path, "--reference", tiny_bert, "-q")
    assert ended.code == 3
    assert "expected: the model that the package was built from, with the inputs x" in ended.err


def test_a_metric_of_ones_own_is_run_beside_a_reference_alone(
    own_module: Path,
    mlp_onnx: Path,
    mlp_samples: Path,
    board: Path,
    tmp_path: Path,
    check: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    options = {"task": "own_net:relative_error", "max_drop": 1.0, "name": "net"}
    made = build(mlp_onnx, tmp_path, target=str(board), data=str(mlp_samples), **options)
    limited = (made.path, "--data", mlp_samples, "--max-drop", "1.0", "--json", "-q")
    ended = check(*limited, "--reference", mlp_onnx, "--task", "own_net:relative_error")
    assert ended.code == 0
    assert findings(ended)["worst_relative_error"]["value"] == pytest.approx(made.value("drop"), rel=1e-6)
    monkeypatch.setitem(sys.modules, "own_net", None)  # it can't be imported any more, and needn't be
    assert findings(check(*limited))["drop"]["verdict"] == "unjudged"
    refused = check(*limited, "--reference", mlp_onnx)  # a package doesn't decide what is run
    assert refused.code == 2
    assert "the package is measured by code of its own, 'own_net:relative_error'" in refused.err
    assert check(*limited, "--reference", mlp_onnx, "--task", "feature-extraction").code == 2


# Damage


def contents(package: Path) -> dict[str, bytes]:
    if zipfile.is_zipfile(package):
        with zipfile.ZipFile(package) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(package) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def repack(path: Path, files: Mapping[str, bytes]) -> Path:
    """An archive that is whole in itself, whatever is in it."""
    if path.suffix == ".aar":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(changed)] ^= 0x20
    return bytes(changed)


@pytest.mark.parametrize("which", ["classifier", "mlp"])
def test_a_byte_flipped_in_each_file(which: str, check: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The manifest is what the others are held against: a byte of it may only make it say something else."""
    made: Made = request.getfixturevalue(which)
    files = contents(made.path)
    inner = next(name for name in files if name.endswith("manifest.json")).removesuffix("manifest.json")
    own = [name for name in files if name.startswith(inner) and not name.endswith("manifest.json")]
    assert len(own) >= 2
    for name in own:
        for at in (0, len(files[name]) // 2, -1):
            path = repack(tmp_path / made.path.name, {**files, name: flip(files[name], at)})
            ended = check(path)
            assert ended.code == 6, (name, at)
            assert "error: files.wrong_files: the SHA-256 of " + name.removeprefix(inner) in ended.err
            assert "the package is damaged: nothing else was checked" in ended.out
            assert "latency" not in ended.out


def test_a_byte_flipped_anywhere_in_the_archive(check: Any, mlp: Made, tmp_path: Path) -> None:
    whole = mlp.path.read_bytes()
    for at in range(13, len(whole), max(1, len(whole) // 25)):
        (tmp_path / "x.tar.gz").write_bytes(flip(whole, at))
        assert check(tmp_path / "x.tar.gz", "-q").code in (3, 6), at


def test_a_byte_flipped_anywhere_in_an_android_library(check: Any, classifier: Made, tmp_path: Path) -> None:
    """A zip has bytes that nothing depends on, dates for one: then the contents must be the same."""
    whole, files = classifier.path.read_bytes(), contents(classifier.path)
    for at in range(0, len(whole), len(whole) // 40):
        path = tmp_path / "x.aar"
        path.write_bytes(flip(whole, at))
        code = check(path, "-q").code
        assert code in (3, 6) or (code == 0 and _same(path, files)), at


BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error)


def _same(path: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return contents(path) == files
    except (*BROKEN, OSError, EOFError, RuntimeError, ValueError, AttributeError):  # what archives of wrong bytes raise
        return False


Change = Callable[[dict[str, bytes], dict[str, Any]], None]


def put(name: str, content: bytes, *, promised: bool = True) -> Change:
    """Another content, and the manifest says that it is the right one."""

    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[name] = content
        if promised:
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    return change


def say(*path: str, value: Any) -> Change:
    """The manifest says something else."""

    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def escaping_model() -> bytes:
    """A graph whose weights are said to lie outside its folder."""
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "16")):
        item = weights.external_data.add()
        item.key, item.value = key, value
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


ZEROS = "0" * 64
CHANGES: dict[str, tuple[Change, int, str]] = {
    "nothing": (lambda files, manifest: None, 0, ""),
    "a file too many": (put("extra.so", b"\x7fELF", promised=False), 6, "extra.so isn't in the manifest"),
    "a file too few": (lambda files, manifest: files.pop("weights.esz"), 6, "weights.esz is missing"),
    "no model": (lambda files, manifest: files.pop("model.onnx"), 6, "model.onnx is missing"),
    "weights that are decoded already": (put("weights.bin", b"x", promised=False), 6, "weights.bin isn't in the manif"),
    "a file longer": (put("model.onnx", b"x" * 9, promised=False), 6, "model.onnx has 9 bytes instead of"),
    "another hash of the weights": (say("files", "weights.bin", "sha256", value=ZEROS), 6, "SHA-256 is not 0000"),
    "another size of the weights": (say("files", "weights.bin", "bytes", value=7), 6, "bytes instead of 7"),
    "weights of nothing": (put("weights.esz", b""), 6, "can't be decoded"),
    "weights of noise": (put("weights.esz", bytes(range(256)) * 9), 6, "can't be decoded"),
    "a model of noise": (put("model.onnx", b"\xff" * 99), 3, "not a whole ONNX model"),
    "a model that reads elsewhere": (put("model.onnx", escaping_model()), 3, "external data at ../../../../etc/passwd"),
    "other inputs": (say("signature", "inputs", value=[]), 6, "1 inputs instead of 0"),
    "inputs of another kind": (say("signature", "inputs", value="x"), 6, "1 inputs instead of 0"),
    "another name of the output": (
        say("signature", "outputs", value=[{"name": "z", "type": "tensor(float)", "shape": [None, 16]}]),
        6,
        "y is tensor(float) [None, 16], the manifest has",
    ),
    "an unknown task": (say("task", value={"task": "levitation"}), 3, "'levitation'"),
    "a task of another kind": (say("task", value={"task": ["x"]}), 3, "['x']"),
    "a task with unknown settings": (say("task", "colour", value="red"), 3, 'unknown key "colour"'),
    "a runtime that nobody knows": (say("runtime", "version", value="9.9.9"), 0, "unjudged: operators.unsupported"),
    "an unknown target": (say("target", value="moon"), 0, ""),
    "a path for a target": (say("target", value="../../board.toml"), 0, ""),
    "an unknown target without a machine": (say("machine", value=None), 3, "--target FILE.toml"),
    "an older manifest": (lambda files, manifest: manifest.pop("calibration"), 0, ""),
}


@pytest.mark.parametrize("case", CHANGES)
def test_packages_that_say_something_else(case: str, check: Any, mlp: Made, tmp_path: Path) -> None:
    change, code, said = CHANGES[case]
    files = {name.partition("/")[2]: content for name, content in contents(mlp.path).items()}
    manifest = json.loads(files["manifest.json"])
    change(files, manifest)
    files["manifest.json"] = json.dumps(manifest).encode()
    path = repack(tmp_path / "x.tar.gz", {f"mlp/{name}": content for name, content in files.items()})
    ended = check(path, "-q")
    assert ended.code == code, ended.err
    assert said in ended.err
    if code in (3, 6):
        assert "hint: " in ended.err or "expected: " in ended.err


def test_a_full_disk_is_told_before_it_is_filled(check: Any, mlp: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    ended = check(mlp.path, "-q")
    assert ended.code == 3
    assert "100 bytes are free\n  expected: room for " in ended.err


@pytest.mark.parametrize("values", [np.ones((4, 3), np.float32), np.ones((4, 16), np.float64)])
def test_data_that_does_not_fit(check: Any, mlp: Made, tmp_path: Path, values: Any) -> None:
    np.savez(tmp_path / "x.npz", x=values)
    ended = check(mlp.path, "--data", tmp_path / "x.npz", "-q")
    assert ended.code == 3
    assert f"the model can't run on x {values.dtype} [1, {values.shape[1]}]" in ended.err


def test_what_is_no_package(check: Any, mlp: Made, tmp_path: Path) -> None:
    (tmp_path / "empty.aar").touch()
    for path in (tmp_path / "none.aar", tmp_path / "empty.aar", mlp.path.parent):
        ended = check(path, "-q")
        assert (ended.code, ended.out) == (3, "")
        assert "expected: an .aar or a .tar.gz" in ended.err
