"""The runner on emulated ARM machines: the same bits, exact counts, and what goes wrong told as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.core import Feed
from edgeslim.devices.arm_machines import MACHINES
from edgeslim.devices.device import open_device
from edgeslim.devices.runner import DeviceRun, run_on_device
from edgeslim.errors import CheckError, DeviceError, UsageError
from edgeslim.session import open_runner
from tests.devices.conftest import need, need_machine


def run(spec: str, isa: Any, model: Path, feeds: list[Feed], **more: Any) -> DeviceRun:
    settings = {"threads": 1, "rounds": 1, "warm_up": 1, "timeout_s": 120.0, **more}
    with open_device(spec, isa) as device:
        return run_on_device(
            device, model=model, weights=model.parent / "weights.bin", packed=None, feeds=feeds, **settings
        )


@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "cortex-a7"])
def test_integer_graphs_give_the_same_bits(name: str, integer_cnn: Path, pictures: list[Feed]) -> None:
    isa = MACHINES[name].isa
    need_machine(isa)
    there = run(f"qemu:{name}", isa, integer_cnn, pictures)
    here = open_runner(integer_cnn)
    for feed, output in zip(pictures, there.outputs, strict=True):
        np.testing.assert_array_equal(output["y"], here(feed)["y"])
    assert len(np.unique(there.outputs[0]["y"])) > 10
    assert "part" in there.facts["cpu"]


def test_counts_are_exact(integer_cnn: Path, pictures: list[Feed]) -> None:
    need_machine("aarch64")
    runs = [run("qemu", "aarch64", integer_cnn, pictures, operators=index == 0) for index in range(3)]
    counts = {item.instructions.run for item in runs if item.instructions}
    assert len(counts) == 1
    assert counts.pop() > 100_000
    shares = {share.operator: share.instructions for share in runs[0].operators}
    assert runs[0].operators[0].operator == "QLinearConv"
    assert sum(shares.values()) > 100_000  # with the profile's own, which weigh much in a graph this small


def test_this_host_runs_it_too(integer_cnn: Path, pictures: list[Feed]) -> None:
    need("gcc", "npm")
    there = run("host", "x86_64", integer_cnn, pictures, rounds=3)
    np.testing.assert_array_equal(there.outputs[1]["y"], open_runner(integer_cnn)(pictures[1])["y"])
    assert len(there.run_ms) == 3
    assert there.instructions is None
    assert there.peak_bytes > 1 << 20


def test_a_runtime_that_is_none(integer_cnn: Path, pictures: list[Feed], tmp_path: Path) -> None:
    need_machine("aarch64")
    (tmp_path / "lib.so").write_text("no library")
    with pytest.raises(DeviceError, match="can't be loaded there"):
        run("qemu", "aarch64", integer_cnn, pictures, library=str(tmp_path / "lib.so"))


def test_a_model_that_is_none(integer_cnn: Path, pictures: list[Feed], tmp_path: Path) -> None:
    need_machine("aarch64")
    (tmp_path / "model.onnx").write_text("no model")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CheckError, match="refuses the model"):
        run("qemu", "aarch64", tmp_path / "model.onnx", pictures)


def test_a_run_that_hangs(integer_cnn: Path, pictures: list[Feed]) -> None:
    need_machine("aarch64")
    with pytest.raises(DeviceError, match="has not ended after"):
        run("qemu", "aarch64", integer_cnn, pictures, rounds=100_000, timeout_s=3.0)


@pytest.mark.parametrize("spec", ["qemu:cortex-a77", "qemu:cortex-a7", "usb", "ssh:", "ssh:-oProxyCommand=x", "adb:-x"])
def test_devices_that_are_none(spec: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        open_device(spec, "aarch64").__enter__()
