"""``edgeslim ort``: the image runs on the whole armhf runtime, and its list has every operator in it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import cli
from edgeslim.checks import latency
from edgeslim.devices.device import open_device
from edgeslim.devices.runner import run_on_device
from edgeslim.errors import BadInputError
from edgeslim.packaging.ort_image import CONFIG_NAME, write_ort_image
from tests.devices.conftest import need_machine


@pytest.fixture(scope="module")
def package(tiny_bert: Path, text_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        built = edgeslim.build(
            str(tiny_bert), target="linux-armhf", data=str(text_files.txt), out=str(folder), use_cache=False
        )
    return Path(built.artifact.path)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["edgeslim", "ort", *map(str, words)])
    return cli.run()


def test_an_image_runs_on_armhf(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    need_machine("armhf")
    image = tmp_path / "bert.ort"
    assert run(monkeypatch, package, "--out", image) == 0
    assert "bert.ort: " in capsys.readouterr().out
    lines = (tmp_path / CONFIG_NAME).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Generated from bert.ort"
    assert str(tmp_path) not in "\n".join(lines)
    listed = {name.split("{")[0] for line in lines[1:] for name in line.split(";", 2)[2].split(",")}
    assert {"MatMulIntegerToFloat", "QuantizeLinear", "Softmax"} <= listed
    assert {line.split(";")[0] for line in lines[1:]} == {"ai.onnx", "com.microsoft"}

    session = edgeslim.load(package, loading="memory")
    ids = np.array([[2, 40, 61, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (tmp_path / "weights.bin").write_bytes(b"")
    with open_device("qemu", "armhf") as device:
        there = run_on_device(
            device,
            model=image,
            weights=tmp_path / "weights.bin",
            packed=None,
            feeds=[feed],
            threads=1,
            rounds=1,
            warm_up=0,
            timeout_s=120,
        )
    want = session.run(None, feed)[0]
    np.testing.assert_allclose(next(iter(there.outputs[0].values())), want, atol=2e-2)


def test_what_is_no_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "model.onnx").write_bytes(b"none")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    assert run(monkeypatch, tmp_path / "bad.tar.gz", "--out", tmp_path / "x.ort") == 3
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "x.ort").exists()
    with pytest.raises(BadInputError, match=r"ends in \.ort"):
        write_ort_image(folder / "model.onnx", tmp_path / "x.bin")
