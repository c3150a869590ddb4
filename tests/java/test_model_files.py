"""Unpacking on a plain JVM. The scenarios are in ``io/edgeslim/ModelFilesMain.java``; all run in one JVM."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from edgeslim.codec import Segment, write_container
from edgeslim.packaging.android import AndroidSettings, write_aar
from edgeslim.packaging.bundle import Bundle, write_manifest

SOURCE = Path(__file__).parent / "io" / "edgeslim" / "ModelFilesMain.java"
CONTAINER = Path(__file__).parents[1] / "golden" / "sparse.esz"
SCENARIOS = re.findall(r"void (test\w+)\(", SOURCE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def outcomes(run_java: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lines = run_java("ModelFilesMain", CONTAINER, tmp_path_factory.mktemp("models")).splitlines()
    return {line.split()[1].rstrip(":"): line for line in lines}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == f"ok {scenario}"


def test_two_processes_unpack_once(build_java: ModuleType, java_classes: Path, tmp_path: Path) -> None:
    command = [build_java.jdk_tool("java"), "-cp", str(java_classes), "io.edgeslim.ModelFilesMain"]
    command += [str(CONTAINER), "-", str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert sorted(out.strip() for out, _ in ends) == ["false", "true"], ends
    (version,) = [path.name for path in (tmp_path / "edgeslim" / "test").iterdir() if path.name[0] != "."]
    assert re.fullmatch(r"[0-9a-f]{32}", version)


def test_package_of_the_python_side_unpacks(
    run_java: Callable[..., str], c_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a bundle to an AAR, out of it again, and through the loader: the same two files."""
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(c_library))
    model, weights, packed, manifest = (tmp_path / name for name in ("m.onnx", "w.bin", "w.esz", "m.json"))
    model.write_bytes(b"graph " * 1000)
    weights.write_bytes(bytes(range(64)) * 5000)
    write_container(packed, [Segment("all", weights.read_bytes(), "uint8", (320_000,))])
    facts = {
        "inputs": [{"name": "input_ids", "shape": [None, "ä"], "scale": 1e-05, "fixed": False}],
        "text": "\u2028\n",
    }
    files = {"model.onnx": model, "weights.bin": weights, "weights.esz": packed, "tokenizer/tokenizer.json": model}
    write_manifest(manifest, facts, files)
    bundle = Bundle(
        name="tiny.v2", model=model, packed=packed, manifest=manifest, extras=(("tokenizer/tokenizer.json", model),)
    )
    aar = write_aar(bundle, AndroidSettings(min_sdk=24), tmp_path / "tiny.aar")
    with zipfile.ZipFile(aar) as archive:
        archive.extractall(tmp_path / "aar")
    assets = tmp_path / "aar" / "assets" / "edgeslim" / "tiny.v2"
    folder = Path(run_java("ModelFilesMain", "unpack", "tiny.v2", assets, tmp_path / "app").strip())
    assert folder.parent == tmp_path / "app" / "edgeslim" / "tiny.v2"
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "weights.bin").read_bytes() == weights.read_bytes()
    assert (folder / "manifest.json").read_bytes() == manifest.read_bytes()
    assert len(list(folder.iterdir())) == 3
