"""ARM machines that QEMU's user mode can stand for, with what their kernels would say of them.

ONNX Runtime chooses its kernels by ``/proc/cpuinfo`` and ``/sys/devices/system/cpu``. Under user-mode emulation these
are the building host's, on which its CPU detection fails; so a machine's own are laid under the root that QEMU serves
absolute paths from. Identification numbers and feature flags are those of Arm's reference manuals for each core.

QEMU's own model ``max`` is not offered: QEMU 7.2 computes ONNX Runtime's dynamic int8 kernels wrongly there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["MACHINES", "ArmMachine", "lay_machine_files"]

ARM_LIMITED = 0x41
_V8 = "fp asimd evtstrm crc32 cpuid"
_V82 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"  # dot product
)
_V7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"


@dataclass(frozen=True, kw_only=True)
class ArmMachine:
    """A core: ``part`` and ``variant`` as its identification register has them, ``features`` as Linux names them."""

    isa: Literal["aarch64", "armhf"]
    part: int
    variant: int
    revision: int
    features: str
    cores: int = 4
    max_khz: int = 1_500_000


MACHINES = {
    "cortex-a35": ArmMachine(isa="aarch64", part=0xD04, variant=0, revision=2, features=_V8),
    "cortex-a53": ArmMachine(isa="aarch64", part=0xD03, variant=0, revision=4, features=_V8),
    "cortex-a57": ArmMachine(isa="aarch64", part=0xD07, variant=1, revision=0, features=_V8),
    "cortex-a72": ArmMachine(isa="aarch64", part=0xD08, variant=0, revision=3, features=_V8, max_khz=1_800_000),
    "cortex-a76": ArmMachine(isa="aarch64", part=0xD0B, variant=4, revision=1, features=_V82, max_khz=2_400_000),
    "neoverse-n1": ArmMachine(isa="aarch64", part=0xD0C, variant=3, revision=1, features=_V82, max_khz=2_600_000),
    "cortex-a7": ArmMachine(isa="armhf", part=0xC07, variant=0, revision=5, features=_V7, max_khz=1_200_000),
    "cortex-a15": ArmMachine(isa="armhf", part=0xC0F, variant=2, revision=1, features=_V7),
}


def lay_machine_files(root: Path, machine: ArmMachine) -> None:
    """Writes ``proc/cpuinfo`` and ``sys/devices/system/cpu`` of ``machine`` below ``root``."""
    architecture = 8 if machine.isa == "aarch64" else 7
    blocks = [
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {machine.features}\n"
        f"CPU implementer\t: {ARM_LIMITED:#04x}\nCPU architecture: {architecture}\n"
        f"CPU variant\t: {machine.variant:#x}\nCPU part\t: {machine.part:#05x}\nCPU revision\t: {machine.revision}\n"
        for core in range(machine.cores)
    ]
    _write(root / "proc/cpuinfo", "\n".join(blocks) + "\n")
    folder, everyone = root / "sys/devices/system/cpu", f"0-{machine.cores - 1}"
    for name in ("possible", "present", "online"):
        _write(folder / name, everyone)
    _write(folder / "kernel_max", "255")
    identity = ARM_LIMITED << 24 | machine.variant << 20 | 0xF << 16 | machine.part << 4 | machine.revision
    for core in range(machine.cores):
        files = {
            "cpufreq/cpuinfo_max_freq": str(machine.max_khz),
            "cpufreq/cpuinfo_min_freq": "600000",
            "topology/physical_package_id": "0",
            "topology/core_id": str(core),
            "topology/core_siblings_list": everyone,
            "topology/cluster_cpus_list": everyone,
            "topology/thread_siblings_list": str(core),
            "regs/identification/midr_el1": f"{identity:#018x}",
        }
        alone = str(core)
        caches = (("1", "Data", "32K", alone), ("1", "Instruction", "32K", alone), ("2", "Unified", "512K", everyone))
        for index, (level, kind, size, shared) in enumerate(caches):
            cache = f"cache/index{index}"
            files |= {f"{cache}/level": level, f"{cache}/type": kind, f"{cache}/size": size}
            files[f"{cache}/shared_cpu_list"] = shared
        for name, value in files.items():
            _write(folder / f"cpu{core}" / name, value)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
