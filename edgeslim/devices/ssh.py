"""A board by ssh: the user's own client, keys and configuration; nothing but a POSIX shell is needed there.

One connection is shared by all commands (a control socket in a private folder). Passwords are never asked for.
``EDGESLIM_SSH_CONFIG`` names another configuration file than the user's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslim.devices.device import Outcome
from edgeslim.devices.remote import RemoteDevice, open_remote
from edgeslim.errors import DeviceError, MissingToolError, UsageError

__all__ = ["open_ssh"]

BASES = ("/tmp", "/var/tmp", "/data/local/tmp")  # noqa: S108 - on the device, below which a folder of its own is made
LOST = 255
CONNECT_S = 15


class SshChannel:
    """Commands by ``ssh``, files by its standard input and output."""

    label = "ssh"

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def shell(self, script: str, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        return self._call(script, timeout_s)

    def send(self, source: Path, to: str, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        with source.open("rb") as file:
            return self._call(f"cat >'{to}'", timeout_s, stdin=file.fileno())

    def receive(self, name: str, to: Path, *, timeout_s: float) -> Outcome:
        """See ``Channel``."""
        with to.open("wb") as file:
            return self._call(f"cat '{name}'", timeout_s, stdout=file.fileno())

    def _call(
        self, script: str, timeout_s: float, *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
    ) -> Outcome:
        try:
            done = subprocess.run(
                [*self._command, script], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        said = done.stderr.decode("utf-8", "replace")
        if done.returncode == LOST:
            lines = said.strip().splitlines()
            raise DeviceError(
                self.label,
                f"no connection: {lines[-1][:300] if lines else 'it was closed'}",
                expected="a host that ssh reaches without a password",
                hint="does `ssh USER@HOST true` work?",
            )
        return Outcome(status=done.returncode, stdout=(done.stdout or b"").decode("utf-8", "replace"), stderr=said)


@contextmanager
def open_ssh(destination: str) -> Iterator[RemoteDevice]:
    """The board at ``[USER@]HOST[:PORT]``, or a name of the user's ssh configuration.

    Raises:
        UsageError: no such form.
        MissingToolError: ssh isn't installed.
        DeviceError: see ``open_remote``.
    """
    found = re.fullmatch(r"((?:[\w.-]+@)?(?:[\w.][\w.-]*|\[[0-9a-fA-F:]+\]))(?::(\d{1,5}))?", destination)
    if not found:
        raise UsageError("--device", f"ssh:{destination}", expected="ssh:USER@HOST or ssh:USER@HOST:PORT")
    client = shutil.which("ssh")
    if client is None:
        raise MissingToolError("--device ssh", "no ssh", hint="apt-get install openssh-client")
    with tempfile.TemporaryDirectory(prefix="edgeslim-ssh-") as folder:
        config = os.environ.get("EDGESLIM_SSH_CONFIG")
        command = [client, *(["-F", config] if config else [])]
        for option in (
            "BatchMode=yes",
            f"ConnectTimeout={CONNECT_S}",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ControlMaster=auto",
            f"ControlPath={folder}/control",
            "ControlPersist=60",
        ):
            command += ["-o", option]
        command += ["-p", found[2]] if found[2] else []
        command.append(found[1].replace("[", "").replace("]", ""))
        try:
            with open_remote(SshChannel(command), BASES) as device:
                yield device
        finally:
            subprocess.run([*command[:-1], "-O", "exit", command[-1]], capture_output=True, timeout=CONNECT_S)
