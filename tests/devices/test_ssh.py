"""A board by ssh, played by a real sshd on this host."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeslim.core import Feed
from edgeslim.devices import ssh
from edgeslim.devices.device import open_device
from edgeslim.devices.runner import run_on_device
from edgeslim.errors import DeviceError
from edgeslim.session import open_runner
from tests.devices.conftest import need


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """An sshd on a free port that takes one key; programs there may write to one folder alone."""
    need("ssh", "ssh-keygen", "sshd" if shutil.which("sshd") else "/usr/sbin/sshd")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {tmp_path}/user\n"
        f"  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile {tmp_path}/known\n  LogLevel ERROR\n"
    )
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("EDGESLIM_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.setattr(ssh, "BASES", (str(tmp_path / "there"),))
    daemon = subprocess.Popen(
        [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "sshd_config")],
        stderr=subprocess.DEVNULL,
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield daemon
    daemon.kill()
    daemon.wait()
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.usefixtures("board")
def test_a_model_runs_there_and_nothing_stays(integer_cnn: Path, pictures: list[Feed]) -> None:
    need("gcc", "npm")
    with open_device("ssh:board", "x86_64") as device:
        assert device.real
        there = run_on_device(
            device,
            model=integer_cnn,
            weights=integer_cnn.parent / "weights.bin",
            packed=None,
            feeds=pictures,
            threads=1,
            rounds=3,
            warm_up=1,
            timeout_s=60,
        )
    np.testing.assert_array_equal(there.outputs[0]["y"], open_runner(integer_cnn)(pictures[0])["y"])
    assert len(there.run_ms) == 3


@pytest.mark.usefixtures("board")
def test_one_check_at_a_time(tmp_path: Path) -> None:
    with open_device("ssh:board", "x86_64"):
        with pytest.raises(DeviceError, match="another check is at work"):
            open_device("ssh:board", "x86_64").__enter__()
        (tmp_path / "there/edgeslim-check/until").write_text("1\n")  # one that lost its connection long ago
        with open_device("ssh:board", "x86_64") as second:
            assert second.isa == "x86_64"


@pytest.mark.usefixtures("board")
def test_a_hung_run_is_killed_there(tmp_path: Path) -> None:
    script = tmp_path / "hang"
    script.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/hung\nexec sleep 300\n")
    with open_device("ssh:board", "x86_64") as device:
        device.push({"hang": script})
        with pytest.raises(DeviceError, match="has not ended after 1 s"):
            device.run(["hang"], timeout_s=1)
        hung = int((tmp_path / "hung").read_text())
        for _ in range(50):
            if not Path(f"/proc/{hung}").exists():
                break
            time.sleep(0.1)
        assert not Path(f"/proc/{hung}").exists()


def test_unplugged_half_way(board: subprocess.Popen[bytes], tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 3\n")

    def lose_it() -> None:
        with open_device("ssh:board", "x86_64") as device:
            device.push({"slow": slow})
            subprocess.run(["pkill", "-P", str(board.pid)], check=False)
            board.kill()
            board.wait()
            device.run(["slow"], timeout_s=20)

    with pytest.raises(DeviceError, match="no connection"):
        lose_it()
    shutil.rmtree(tmp_path / "there/edgeslim-check", ignore_errors=True)  # what nobody could reach any more


@pytest.mark.usefixtures("board")
def test_a_full_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgeslim.devices.remote.SPARE_BYTES", 1 << 60)
    (tmp_path / "file").write_bytes(b"x")
    with open_device("ssh:board", "x86_64") as device, pytest.raises(DeviceError, match="MB free"):
        device.push({"file": tmp_path / "file"})


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("ssh")
    (tmp_path / "config").write_text("Host board\n  HostName 127.0.0.1\n  Port 1\n")
    monkeypatch.setenv("EDGESLIM_SSH_CONFIG", str(tmp_path / "config"))
    with pytest.raises(DeviceError, match="no connection"):
        open_device("ssh:board", "x86_64").__enter__()
