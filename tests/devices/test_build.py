"""``edgeslim build --device``: what the device says counts before anything is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeslim import cli
from edgeslim.checks import latency
from tests.devices.conftest import need_machine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    need_machine("armhf")
    monkeypatch.setattr(latency, "PROBES", 1)


def edgeslim(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["edgeslim", *map(str, words)])
    return cli.run()


def test_a_device_judges_before_the_package_is_published(
    mlp_onnx: Path, mlp_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    build = [
        "build",
        mlp_onnx,
        "--target",
        "linux-armhf",
        "--data",
        mlp_samples,
        "--out",
        tmp_path / "out",
        "--json",
        "-q",
    ]
    there = ["--device", "qemu", "--device-samples", 2]
    assert edgeslim(monkeypatch, *build, *there, "--max-instructions", 10) == 4
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert edgeslim(monkeypatch, *build, *there, "--max-instructions", 10_000_000, "--max-latency", "1s") == 0
    told = json.loads(capsys.readouterr().out)
    found = {item["metric"]: item for item in told["findings"]}
    assert found["device_output_error"]["verdict"] == found["device_instructions"]["verdict"] == "pass"
    assert "qemu cortex-a7" in found["device_instructions"]["where"]
    assert found["device_latency_p50_ms"]["verdict"] == "unjudged"
    assert (tmp_path / "out" / "mlp.tar.gz").is_file()


def test_a_limit_that_nobody_counted_is_unjudged(
    mlp_onnx: Path, mlp_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    build = ["build", mlp_onnx, "--target", "linux-armhf", "--data", mlp_samples, "--out", tmp_path / "out", "-q"]
    assert edgeslim(monkeypatch, *build, "--max-instructions", 10) == 0
    assert "unjudged: device.device_instructions" in capsys.readouterr().err
    assert edgeslim(monkeypatch, *build, "--runtime", "x.so") == 2
