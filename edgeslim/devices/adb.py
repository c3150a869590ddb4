"""A phone or an emulator by adb, or any Linux board that runs its daemon.

``adb shell`` ends with status 0 and without a word where the device is lost meanwhile. So a script's last line tells
its status, and where that line is missing the connection was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslim.devices.device import Outcome
from edgeslim.devices.remote import SHORT_S, RemoteDevice, open_remote
from edgeslim.errors import DeviceError, MissingToolError, UsageError

__all__ = ["open_adb"]

BASES = ("/data/local/tmp", "/tmp")  # noqa: S108 - on the device, below which a folder of its own is made
_END = "edgeslim-status "
_LOST = re.compile(
    r"^(?:adb: )?(?:error: )?(?:device .*(?:not found|offline|unauthorized)|no devices|closed|.*connect failed)"
)


class AdbChannel:
    """Commands by ``adb shell``, files by ``adb push`` and ``adb pull``."""

    label = "adb"

    def __init__(self, client: str, serial: str) -> None:
        self._command = [client, "-s", serial]
        self._serial = serial

    def shell(self, script: str, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        told = self._call("shell", "-T", "-n", f"({script}\n)\nprintf '\\n{_END}%d\\n' $?", timeout_s=timeout_s)
        text, _, status = told.stdout.rpartition(f"\n{_END}")
        if not status.strip().isdigit():
            raise self._lost(told.stderr or "the connection was closed")
        return Outcome(status=int(status), stdout=text, stderr=told.stderr)

    def send(self, source: Path, to: str, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        return self._call("push", str(source), to, timeout_s=timeout_s)

    def receive(self, name: str, to: Path, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        return self._call("pull", name, str(to), timeout_s=timeout_s)

    def _call(self, *words: str, timeout_s: float) -> Outcome:
        try:
            done = subprocess.run(
                [*self._command, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        said = done.stderr.decode("utf-8", "replace").replace(self._serial, "the device")
        lines = said.strip().splitlines()
        if done.returncode != 0 and any(_LOST.match(line) for line in lines):
            raise self._lost(lines[-1])
        return Outcome(status=done.returncode, stdout=done.stdout.decode("utf-8", "replace"), stderr=said)

    def _lost(self, said: str) -> DeviceError:
        return DeviceError(
            self.label,
            said.strip()[:300],
            expected="a device that stays connected and has allowed debugging",
            hint="`adb devices` lists what is attached",
        )


@contextmanager
def open_adb(serial: str) -> Iterator[RemoteDevice]:
    """The device with this serial, or the only one that is attached.

    Raises:
        UsageError: a malformed serial, or several devices and none named.
        MissingToolError: adb isn't installed.
        DeviceError: there is no such device, or see ``open_remote``.
    """
    if serial and (serial.startswith("-") or not re.fullmatch(r"[\w.:\[\]-]+", serial)):
        raise UsageError("--device", f"adb:{serial}", expected="a serial as `adb devices` prints it")
    client = shutil.which("adb")
    if client is None:
        raise MissingToolError("--device adb", "no adb", hint="apt-get install adb")
    with open_remote(AdbChannel(client, serial or _only_device(client)), BASES) as device:
        yield device


def _only_device(client: str) -> str:
    try:
        done = subprocess.run([client, "devices"], capture_output=True, timeout=SHORT_S)
    except subprocess.TimeoutExpired as error:
        raise DeviceError("adb", f"its server has not answered within {SHORT_S:.0f} s") from error
    told = done.stdout.decode("utf-8", "replace")
    rows = [line.split("\t") for line in told.splitlines() if "\t" in line]
    ready = [row[0] for row in rows if row[1].strip() == "device"]
    if len(ready) == 1:
        return ready[0]
    if ready:
        raise UsageError("--device", f"adb: {len(ready)} devices are attached", expected="adb:SERIAL")
    states = ", ".join(sorted({row[1].strip() for row in rows}))
    raise DeviceError(
        "adb",
        f"no device is ready ({states})" if states else "no device is attached",
        expected="one that has allowed debugging",
    )
