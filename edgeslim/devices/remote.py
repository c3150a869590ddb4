"""A device behind a shell: what ssh and adb have in common.

The folder on the device is itself the lock: ``mkdir`` makes it or fails, so two checks can't share a device. In it lies
the time, by the device's own clock, until which it counts, set anew by each longer step; after a check that lost its
connection the next one takes it over once that has passed. A program runs beside a watchdog on the device, which ends
it in time even when nobody is connected any more.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from edgeslim.devices.device import Isa, Libc, Outcome
from edgeslim.errors import DeviceError, EdgeslimError

__all__ = ["Channel", "RemoteDevice", "open_remote"]

SHORT_S = 30.0
SEND_BYTES_A_SECOND = 200_000
LOCK_SLACK_S = 120
PREPARATION_S = 1200
MAX_OUTPUT_BYTES = 1 << 20
SPARE_BYTES = 8 << 20
BUSY, NO_ROOM_TO_LOCK = 11, 12
_ISAS: Mapping[str, Isa] = {"aarch64": "aarch64", "armv7l": "armhf", "armv8l": "armhf", "x86_64": "x86_64"}


class Channel(Protocol):
    """How commands and files reach a device. A lost connection is a ``DeviceError`` of ``lost``."""

    label: str

    def shell(self, script: str, *, timeout_s: float) -> Outcome:
        """Runs a POSIX shell script there.

        Raises:
            DeviceError: no connection.
            TimeoutError: it has not ended in time; on the device it may still run.
        """
        ...

    def send(self, source: Path, to: str, *, timeout_s: float) -> Outcome:
        """Copies a local file to a path there; a status that isn't 0 says that it could not be written."""
        ...

    def receive(self, name: str, to: Path, *, timeout_s: float) -> Outcome:
        """Copies a file from there to a local path."""
        ...


class RemoteDevice:
    """An open device behind ``channel``, with ``folder`` as its private folder there."""

    emulated = False
    real = True

    def __init__(self, channel: Channel, isa: Isa, libc: Libc, folder: str) -> None:
        self._channel, self.isa, self.libc, self._folder = channel, isa, libc, folder
        self.label = channel.label

    def path(self, name: str) -> str:
        """See ``Device``."""
        return f"{self._folder}/{name}"

    def push(self, files: Mapping[str, Path]) -> None:
        """See ``Device``."""
        sizes = {name: source.stat().st_size for name, source in files.items()}
        patiences = {name: SHORT_S + size / SEND_BYTES_A_SECOND for name, size in sizes.items()}
        self._shell(self._hold(sum(patiences.values())), "lock")
        self._need(sum(sizes.values()))
        for name, source in files.items():
            patience = patiences[name]
            try:
                sent = self._channel.send(source, self.path(name), timeout_s=patience)
            except TimeoutError as error:
                raise DeviceError(self.label, f"{name} was not copied within {patience:.0f} s") from error
            if sent.status != 0:
                raise DeviceError(
                    self.label,
                    f"{name} can't be written: {_last_line(sent.stderr)}",
                    expected="room for the package and what it decodes to",
                )
        self._shell("chmod 755 " + " ".join(shlex.quote(self.path(name)) for name in files), "chmod")

    def pull(self, name: str, to: Path) -> None:
        """See ``Device``."""
        try:
            got = self._channel.receive(self.path(name), to, timeout_s=10 * SHORT_S)
        except TimeoutError as error:
            raise DeviceError(self.label, f"{name} was not copied back in time") from error
        if got.status != 0:
            raise DeviceError(self.label, f"{name}: {_last_line(got.stderr)}", expected="what the run wrote")

    def run(self, words: Sequence[str], *, timeout_s: float) -> Outcome:
        """See ``Device``."""
        program = shlex.join([self.path(words[0]), *words[1:]])
        script = (
            f"cd {shlex.quote(self._folder)} || exit 125\n"
            f"{self._hold(timeout_s)}\n"
            f"ORT_DISABLE_TELEMETRY=1 LD_LIBRARY_PATH=. {program} >stdout.txt 2>stderr.txt </dev/null &\n"
            "p=$!; echo $p >pid\n"
            f"( sleep {int(timeout_s) + 1}; kill -9 $p ) >/dev/null 2>&1 </dev/null &\n"
            "w=$!; wait $p; s=$?; kill $w 2>/dev/null; rm -f pid\n"
            f"head -c {MAX_OUTPUT_BYTES} stdout.txt; head -c {MAX_OUTPUT_BYTES} stderr.txt >&2; exit $s"
        )
        try:
            return self._channel.shell(script, timeout_s=timeout_s)
        except TimeoutError as error:
            with suppress(EdgeslimError, TimeoutError):
                kill = f"kill -9 $(cat {shlex.quote(self.path('pid'))})"
                self._channel.shell(kill, timeout_s=SHORT_S)
            raise DeviceError(
                self.label, f"{words[0]} has not ended after {timeout_s:.0f} s", hint="it was killed; --device-timeout"
            ) from error

    def read(self, path: str) -> str:
        """See ``Device``."""
        script = f"head -c {MAX_OUTPUT_BYTES} {shlex.quote(path)} 2>/dev/null"
        with suppress(TimeoutError):
            return self._channel.shell(script, timeout_s=SHORT_S).stdout
        return ""

    def _hold(self, seconds: float) -> str:
        """The command that keeps the lock for another ``seconds``, and for what comes after them."""
        return f"echo $(($(date +%s) + {int(seconds) + LOCK_SLACK_S})) >{shlex.quote(self._folder)}/until"

    def _need(self, size: int) -> None:
        told = self._shell(f"df -k {shlex.quote(self._folder)}", "df").stdout.splitlines()
        numbers = re.findall(r"\s(\d+)(?=\s)", told[-1]) if told else []
        if len(numbers) >= 3 and int(numbers[2]) * 1024 < size + SPARE_BYTES:
            raise DeviceError(
                self.label,
                f"{int(numbers[2]) * 1024 / 1e6:.1f} MB free",
                expected=f"{(size + SPARE_BYTES) / 1e6:.1f} MB for runner, runtime and package",
            )

    def _shell(self, script: str, what: str) -> Outcome:
        try:
            return self._channel.shell(script, timeout_s=SHORT_S)
        except TimeoutError as error:
            raise DeviceError(self.label, f"{what}: no answer within {SHORT_S:.0f} s") from error


@contextmanager
def open_remote(channel: Channel, bases: Sequence[str]) -> Iterator[RemoteDevice]:
    """Takes the device behind ``channel``: a folder below the first of ``bases`` that is there, removed at the end.

    Raises:
        DeviceError: no answer, nowhere to write, another check at work, or no machine that edgeslim has a runner for.
    """
    isa, libc = _identify(channel)
    folder = _take(channel, bases)
    device = RemoteDevice(channel, isa, libc, folder)
    try:
        yield device
    finally:
        with suppress(EdgeslimError, TimeoutError):
            quoted = shlex.quote(folder)
            channel.shell(f"kill -9 $(cat {quoted}/pid) 2>/dev/null; rm -rf {quoted}", timeout_s=SHORT_S)


def _identify(channel: Channel) -> tuple[Isa, Libc]:
    script = (
        "uname -m; if [ -e /system/bin/linker ] || [ -e /system/bin/linker64 ]; then echo bionic; else echo glibc; fi"
    )
    try:
        words = channel.shell(script, timeout_s=SHORT_S).stdout.split()
    except TimeoutError as error:
        raise DeviceError(channel.label, f"no answer within {SHORT_S:.0f} s") from error
    isa = _ISAS.get(words[0]) if words else None
    if isa is None:
        raise DeviceError(
            channel.label, f"a {words[0] if words else 'nameless'} machine", expected="one of " + ", ".join(_ISAS)
        )
    return isa, "bionic" if words[-1] == "bionic" else "glibc"


def _take(channel: Channel, bases: Sequence[str]) -> str:
    script = (
        f"for b in {' '.join(map(shlex.quote, bases))}; do [ -d $b ] && [ -w $b ] && break; b=; done\n"
        f'[ -n "$b" ] || exit {NO_ROOM_TO_LOCK}\n'
        "l=$b/edgeslim-check; n=$(date +%s)\n"
        "if ! mkdir -m 700 $l 2>/dev/null; then\n"
        "  u=$(cat $l/until 2>/dev/null); u=${u:-0}\n"
        f"  [ $u -lt $n ] && [ -d $l ] || exit {BUSY}\n"
        f"  rm -rf $l; mkdir -m 700 $l || exit {BUSY}\n"
        "fi\n"
        f"echo $((n + {PREPARATION_S + LOCK_SLACK_S})) >$l/until; echo $l"
    )
    try:
        taken = channel.shell(script, timeout_s=SHORT_S)
    except TimeoutError as error:
        raise DeviceError(channel.label, f"no answer within {SHORT_S:.0f} s") from error
    folder = taken.stdout.strip()
    if taken.status == BUSY:
        raise DeviceError(
            channel.label,
            "another check is at work on this device",
            expected="one check at a time",
            hint="wait for it; after one that lost its connection, remove its folder edgeslim-check there",
        )
    if taken.status != 0 or not folder.startswith("/") or "\n" in folder:
        raise DeviceError(
            channel.label, "no folder to write to", expected="one of " + ", ".join(bases), hint=_last_line(taken.stderr)
        )
    return folder


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no reason was given"
