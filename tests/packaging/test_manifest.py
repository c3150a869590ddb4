"""Manifests read back: those of other schemas, and those that promise what can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging.manifest import read_manifest

ENTRY = {"bytes": 1, "sha256": "0" * 64}
FILES = dict.fromkeys(("model.onnx", "weights.esz", "weights.bin"), ENTRY)


def manifest_bytes(**changes: Any) -> bytes:
    """A manifest with ``changes``; ``...`` takes a key out."""
    table: dict[str, Any] = {
        "schema": 1,
        "name": "tiny",
        "target": "android-arm64",
        "task": {"task": "feature-extraction"},
        "signature": {"inputs": [], "outputs": []},
        "runtime": {"version": "1.29.0"},
        "files": FILES,
        **changes,
    }
    return json.dumps({key: value for key, value in table.items() if value is not ...}).encode()


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"schema": 1', "not valid JSON"),
    "no text": (b"\xff\xfe\x00", "not valid JSON"),
    "too deep": (b"[" * 100_000, "not valid JSON"),
    "a list": (b"[]", "a JSON list"),
    "too large": (b" " * ((1 << 20) + 1), "bytes"),
    "newer": (manifest_bytes(schema=2), "schema 2"),
    "true for 1": (manifest_bytes(schema=True), "schema True"),
    "no schema": (manifest_bytes(schema=...), "schema None"),
    "no name": (manifest_bytes(name=...), 'no key "name"'),
    "a path for a name": (manifest_bytes(name="../x"), "name = '../x'"),
    "a number for a name": (manifest_bytes(name=3), "3 (int)"),
    "no task": (manifest_bytes(task=...), 'no key "task"'),
    "no runtime": (manifest_bytes(runtime=None), "None"),
    "runtime without version": (manifest_bytes(runtime={}), 'no key "version"'),
    "no files": (manifest_bytes(files=...), 'no key "files"'),
    "files lack the weights": (manifest_bytes(files={"model.onnx": ENTRY}), "no weights.bin, weights.esz"),
    "a file outside": (manifest_bytes(files={**FILES, "../x": ENTRY}), "a file named '../x'"),
    "a hash of another kind": (manifest_bytes(files={**FILES, "x": {"bytes": 1, "sha256": "ab"}}), "sha256 = 'ab'"),
    "a size below zero": (manifest_bytes(files={**FILES, "x": {**ENTRY, "bytes": -1}}), "bytes = -1"),
    "an absurd size": (manifest_bytes(files={**FILES, "x": {**ENTRY, "bytes": 10**18}}), "bytes = 1000"),
    "a tokenizer outside": (manifest_bytes(tokenizer={"folder": "/etc"}), "a file named '/etc'"),
    "texts of no tokens": (manifest_bytes(tokenizer={"folder": "t", "max_length": 0}), "max_length = 0"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_are_refused(case: str, tmp_path: Path, refuses: Any) -> None:
    content, got = MANIFESTS[case]
    (tmp_path / "manifest.json").write_bytes(content)
    with refuses(BadInputError, where="x.aar: manifest.json", got=got):
        read_manifest(tmp_path / "manifest.json", "x.aar: manifest.json")


def test_the_least_that_a_manifest_says(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest_bytes(unknown=[1], runtime={"version": "1.29.0", "more": 1}))
    manifest = read_manifest(tmp_path / "manifest.json", "x")
    assert (manifest.runtime.threads, manifest.runtime.opset_max) == (1, None)
    assert (manifest.tokenizer, manifest.machine, manifest.calibration) == (None, None, None)


def test_no_manifest_at_all(tmp_path: Path, refuses: Any) -> None:
    with refuses(BadInputError, where="x", got="No such file"):
        read_manifest(tmp_path / "manifest.json", "x")
