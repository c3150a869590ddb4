"""What every way to a device has in common: a private folder there, files to and from it, programs run in it.

A device says what it is by ``label``, which goes into reports, so neither addresses nor serial numbers nor keys are in
it. Its times are a device's only where ``real``. Whatever was put there is removed when the device is closed, also
after an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edgeslim.errors import UsageError, near_miss

__all__ = ["Device", "Isa", "Libc", "Outcome", "open_device"]

Isa = Literal["aarch64", "armhf", "x86_64"]
Libc = Literal["glibc", "bionic"]

KINDS = ("host", "qemu", "ssh", "adb")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended on a device; ``status`` is its exit status, or minus the signal that killed it."""

    status: int
    stdout: str
    stderr: str


class Device(Protocol):
    """An open device with an empty folder of its own, below which all names lie."""

    label: str
    isa: Isa
    libc: Libc
    real: bool
    emulated: bool

    def push(self, files: Mapping[str, Path]) -> None:
        """Copies ``files`` there: names in the folder to local paths. Programs stay executable."""
        ...

    def pull(self, name: str, to: Path) -> None:
        """Copies a file of the folder to the local path ``to``."""
        ...

    def run(self, words: Sequence[str], *, timeout_s: float) -> Outcome:
        """Runs a program in the folder; one that doesn't end in time is killed there, and a ``DeviceError`` raised."""
        ...

    def read(self, path: str) -> str:
        """The text of a small file of the system, such as ``/proc/cpuinfo``; empty if it can't be read."""
        ...

    def path(self, name: str) -> str:
        """By which path a program that runs in the folder reaches a name in it."""
        ...


def open_device(spec: str, isa: Isa) -> AbstractContextManager[Device]:
    """Opens what ``--device`` names, for programs of ``isa`` where the device itself doesn't say.

    Raises:
        UsageError: an unknown kind of device.
        MissingToolError: adb, ssh or QEMU isn't installed.
        DeviceError: the device doesn't answer, is in use, or runs programs of another instruction set.
    """
    kind, _, rest = spec.partition(":")
    if kind == "host" and not rest:
        from edgeslim.devices.local import open_host

        return open_host()
    if kind == "qemu":
        from edgeslim.devices.local import open_qemu

        return open_qemu(rest, isa)
    if kind == "ssh" and rest:
        from edgeslim.devices.ssh import open_ssh

        return open_ssh(rest)
    if kind == "adb":
        from edgeslim.devices.adb import open_adb

        return open_adb(rest)
    raise UsageError(
        "--device",
        repr(spec),
        expected="host, qemu, qemu:CPU, ssh:USER@HOST, adb or adb:SERIAL",
        hint=near_miss(kind, KINDS),
    )
