"""Every profile's package, built by its own recipe, on an emulated machine of its own instruction set."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Report
from edgeslim.recheck import CheckOptions, check_package
from edgeslim.recheck_device import DeviceOptions, machine_isa
from edgeslim.target import list_targets, load_target
from tests.devices.conftest import need_machine

NOT_HERE = {"ios-arm64": "only Apple's systems run its programs"}
PROFILES = [profile.name for profile in list_targets() if profile.name not in NOT_HERE]
ON_TEXT = ("linux-arm64", "iot-linux-armhf-min")
"""One of each recipe and instruction set; the others are tried on a smaller model."""

BOARD = """\
extends = "linux-arm64"
name = "gateway-7"
summary = "A gateway with four Cortex-A35"
sources = ["memory_bytes, cores: the board's data sheet"]

[machine]
cores = 4
memory_bytes = 512_000_000
flash_bytes = 40_000_000

[budget]
max_drop = 0.02
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "PROBES", 1)


def build_and_check(model: Path, data: Path, target: str, folder: Path, device: str = "qemu") -> tuple[Report, Report]:
    built = edgeslim.build(str(model), target=target, data=str(data), out=str(folder / "out"), use_cache=False)
    options = DeviceOptions(device=device, samples=2, operators=False)
    return built, check_package(
        CheckOptions(package=built.artifact.path, data=str(data), target=target, device=options)
    )


def value(report: Report, metric: str) -> float:
    return next(item.value for item in report.findings if item.metric == metric and item.value is not None)


@pytest.mark.parametrize("name", PROFILES)
def test_its_package_runs_on_its_own_instruction_set(
    name: str, tiny_bert: Path, text_files: object, mlp_onnx: Path, mlp_samples: Path, tmp_path: Path
) -> None:
    profile = load_target(name)
    isa = machine_isa(profile.machine.isa)
    need_machine(isa)
    on_text = name in ON_TEXT
    model, data = (tiny_bert, text_files.txt) if on_text else (mlp_onnx, mlp_samples)  # type: ignore[attr-defined]
    built, checked = build_and_check(model, data, name, tmp_path)
    assert built.failed() == checked.failed() == ()
    assert value(checked, "device_output_error") < 1e-3
    assert value(checked, "device_instructions") > 1000
    where = next(item.where for item in checked.findings if item.metric == "device_instructions")
    assert ("cortex-a7 " if isa == "armhf" else "cortex-a76 ") in where
    steps = [record.name for record in built.steps]
    assert [str(step["use"]) for step in profile.steps] == [step for step in steps if step.startswith("quantize")]


def test_a_new_board_is_one_short_file(mlp_onnx: Path, mlp_samples: Path, tmp_path: Path) -> None:
    need_machine("aarch64")
    board = tmp_path / "gateway-7.toml"
    board.write_text(BOARD, encoding="utf-8")
    assert len(BOARD.splitlines()) <= 20
    built, checked = build_and_check(mlp_onnx, mlp_samples, str(board), tmp_path, "qemu:cortex-a35")
    assert built.failed() == checked.failed() == ()
    assert (built.target, checked.target) == ("gateway-7", "gateway-7")
    assert Path(built.artifact.path).name == "mlp.tar.gz"
    flash = next(item for item in built.findings if item.metric == "installed_bytes")
    assert (flash.limit, flash.verdict) == (40e6, "pass")
    assert value(checked, "device_instructions") > 1000
