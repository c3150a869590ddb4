"""The loader in C beside Python's, on this host under the sanitizers and on emulated ARM; what is no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Batch
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.devices.device import open_device
from edgeslim.packaging.manifest import read_manifest
from edgeslim.packaging.unpack import unpack_package
from edgeslim.session import open_runner
from edgeslim.task import FeatureExtraction
from tests.devices.conftest import TRIPLETS, need, need_machine
from tests.runtime.loader_programs import SANITIZERS, STRICT, compile_program

MAIN = Path(__file__).parent / "loader_main.c"
IDS = [2, 40, 61, 77, 90, 3]


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    lines: tuple[str, ...]
    err: str

    def vector(self) -> np.ndarray:
        return np.array([float(line) for line in self.lines])


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc", "npm")
    return compile_program(MAIN, "gcc", "x86_64", tmp_path_factory.mktemp("loader"), *STRICT, *SANITIZERS)


def run(loader: Path, folder: Path, *words: object, way: int = 0) -> Ended:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(loader), str(folder), str(way), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert "Sanitizer" not in done.stderr, done.stderr
    return Ended(code=done.returncode, lines=tuple(done.stdout.splitlines()), err=done.stderr.strip())


def unpacked(model: Path, data: Path, folder: Path, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        report = edgeslim.build(
            str(model), target="linux-arm64", data=str(data), out=str(folder / "out"), use_cache=False, **options
        )
    return unpack_package(Path(report.artifact.path), folder).folder


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path, text_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tiny_bert, text_files.txt, tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def copied(encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "model"))


def expected(folder: Path, ids: Sequence[int]) -> np.ndarray:
    weights = folder / "weights.bin"
    if not weights.exists():
        edgeslim.load(folder)
    tokens = np.array([ids])
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    hidden = next(iter(open_runner(folder / "model.onnx", threads=1)(feed).values()))
    task = read_manifest(folder / "manifest.json", "manifest").task
    own = FeatureExtraction(pooling=task["pooling"], normalize=task["normalize"])
    vector: np.ndarray = own._embed(hidden, Batch(feed=feed, rows=1))[0]
    return vector


@pytest.mark.parametrize(("way", "leaves"), [(0, True), (1, True), (2, False)])
def test_vectors_are_pythons(loader: Path, copied: Path, way: int, leaves: bool) -> None:
    for _ in range(2):  # the second start finds what the first left
        told = run(loader, copied, "ids", *IDS, way=way)
        assert told.code == 0, told.err
    assert (copied / "weights.bin").exists() == leaves
    np.testing.assert_allclose(told.vector(), expected(copied, IDS), atol=2e-6)
    assert np.linalg.norm(told.vector()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("changes", [{"pooling": "cls"}, {"pooling": "mean", "normalize": False}])
def test_pooling_follows_the_manifest(loader: Path, copied: Path, changes: dict[str, Any]) -> None:
    table = json.loads((copied / "manifest.json").read_text())
    table["task"] |= changes
    (copied / "manifest.json").write_text(json.dumps(table))
    np.testing.assert_allclose(run(loader, copied, "ids", *IDS).vector(), expected(copied, IDS), atol=1e-5)


def test_texts_are_pythons(loader: Path, copied: Path, labelled_texts: Any) -> None:
    tokenizer = load_tokenizer(copied / "tokenizer")
    for text in ("", labelled_texts[3][0], labelled_texts[8][0].upper() + " [SEP] ünknown, 雪.", "good " * 300):
        told = run(loader, copied, "text", text)
        assert told.code == 0, told.err
        ids = tokenizer(text, truncation=True, max_length=128)["input_ids"]
        np.testing.assert_allclose(told.vector(), expected(copied, ids), atol=5e-6)
    (copied / "tokenizer/tokenizer.etk").write_bytes(b"none")
    assert "tokenizer.etk is damaged" in run(loader, copied, "text", "a").err
    (copied / "tokenizer/tokenizer.etk").unlink()
    assert "tokenizer.etk is missing" in run(loader, copied, "text", "a").err


def test_labels_by_name(loader: Path, copied: Path) -> None:
    table = json.loads((copied / "manifest.json").read_text())
    names = ["bad", 'qu"ote\\', "größer", "雪", "😀 tab\t"]
    table["task"] = {"task": "text-classification", "labels": names}
    for ascii_only in (True, False):
        (copied / "manifest.json").write_text(json.dumps(table, ensure_ascii=ascii_only), encoding="utf-8")
        assert run(loader, copied, "labels").lines[:-1] == tuple(names)
    assert run(loader, copied, "labels").lines[-1] == f"5 128 {table['name']}"


def test_any_model_runs(loader: Path, mlp_onnx: Path, mlp_samples: Path, tmp_path: Path) -> None:
    folder = unpacked(mlp_onnx, mlp_samples, tmp_path)
    values = np.linspace(-1, 1, 16).astype(np.float32)
    told = run(loader, folder, "floats", *values)
    assert told.code == 0, told.err
    session = edgeslim.load(folder)
    want = session.run(None, {session.get_inputs()[0].name: values[None]})[0][0]
    np.testing.assert_allclose(told.vector(), want, rtol=1e-5, atol=1e-6)
    assert "isn't one of texts" in run(loader, folder, "ids", 1).err
    assert "run: " in run(loader, folder, "floats", 1, 2, 3).err


def test_what_is_no_package(loader: Path, copied: Path) -> None:
    assert "1 to 128" in run(loader, copied, "ids", *[1] * 129).err
    whole = (copied / "manifest.json").read_bytes()
    for size in range(0, len(whole) - 2, max(1, len(whole) // 12)):
        (copied / "manifest.json").write_bytes(whole[:size])
        assert run(loader, copied, "labels").code == 11
    for wrong in (b"[" * 100_000, whole.replace(b'"schema": 1', b'"schema": 2'), b'{"schema": 1}', b'{"schema": 1'):
        (copied / "manifest.json").write_bytes(wrong)
        assert run(loader, copied, "labels").code == 11
    (copied / "manifest.json").write_bytes(whole)
    packed = bytearray((copied / "weights.esz").read_bytes())
    packed[len(packed) // 2] ^= 1
    (copied / "weights.esz").write_bytes(packed)
    (copied / "weights.bin").unlink(missing_ok=True)
    for way in (0, 1, 2):
        assert "malformed or damaged" in run(loader, copied, "labels", way=way).err
    assert not list(copied.glob("weights.bin*"))
    (copied / "model.onnx").write_bytes(b"")
    assert run(loader, copied, "labels").code == 11
    assert "no manifest.json" in run(loader, copied / "nowhere", "labels").err


@pytest.mark.parametrize(("machine", "isa"), [("cortex-a72", "aarch64"), ("cortex-a7", "armhf")])
def test_on_emulated_arm(copied: Path, machine: str, isa: Any, tmp_path: Path) -> None:
    need_machine(isa)
    program = compile_program(MAIN, f"{TRIPLETS[isa]}-gcc", isa, tmp_path, "-O1")
    with open_device(f"qemu:{machine}", isa) as device:
        library = tmp_path / "libonnxruntime.so.1"  # each release calls itself by one of the two names
        device.push({"loader": program, library.name: library, "libonnxruntime.so": library})
        told = device.run(["loader", str(copied), "0", "ids", *map(str, IDS)], timeout_s=60)
    assert told.status == 0, told.stderr
    vector = np.array([float(line) for line in told.stdout.split()])
    want = expected(copied, IDS)
    assert float(vector @ want) / np.linalg.norm(want) > 0.9999
