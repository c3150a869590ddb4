"""What a report tells of a device: its CPU, governor and temperature, and nothing that names the one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from edgeslim.devices.runner import device_facts

PI = """\
processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd08

Hardware\t: BCM2835
Revision\t: c03114
Serial\t\t: 100000003d1f0a2c
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PC = "processor\t: 0\nmodel name\t: An x86 CPU @ 2 GHz\nmodel name\t: not the first\n"
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
HEAT = "/sys/class/thermal/thermal_zone0/temp"


@dataclass(frozen=True)
class Files:
    """A device of which only files are read; what it lacks is empty."""

    content: Mapping[str, str]

    def read(self, path: str) -> str:
        return self.content.get(path, "")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (
            {"/proc/cpuinfo": PI, GOVERNOR: "ondemand\n", HEAT: "48312\n"},
            {"cpu": "implementer 0x41, part 0xd08", "governor": "ondemand", "temperature_celsius": "48.3"},
        ),
        ({"/proc/cpuinfo": PC}, {"cpu": "An x86 CPU @ 2 GHz"}),
        ({HEAT: "-5000\n"}, {"temperature_celsius": "-5.0"}),
        ({"/proc/cpuinfo": "no colon", HEAT: "N/A\n", GOVERNOR: "\n"}, {}),
    ],
)
def test_facts_are_those_that_can_be_read(content: dict[str, str], facts: dict[str, str]) -> None:
    assert device_facts(Files(content)) == facts  # type: ignore[arg-type]


def test_a_serial_number_is_not_told() -> None:
    told = str(device_facts(Files({"/proc/cpuinfo": PI})))  # type: ignore[arg-type]
    assert not {"100000003d1f0a2c", "c03114"} & set(told.replace("'", " ").split())
    assert "3d1f0a2c" not in told


def test_a_device_that_tells_much_fills_no_report() -> None:
    long = {"/proc/cpuinfo": "model name: " + "x" * 5000, GOVERNOR: "y" * 5000, HEAT: "1" * 5000}
    facts = device_facts(Files(long))  # type: ignore[arg-type]
    assert facts == {"cpu": "x" * 80, "governor": "y" * 40}
