"""Checks by adb and by ssh against a real adbd and a real sshd inside an emulated 64-bit ARM device.

Every kind of trouble is told as what it is, and leaves nothing on the device. All run in a network of their own, where
ports are free and no other server of adb answers.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.core import Feed
from edgeslim.devices import runner
from edgeslim.devices.device import Device, open_device
from edgeslim.errors import DeviceError
from edgeslim.recheck_device import _check_isa
from edgeslim.session import open_runner
from tests.devices.conftest import need, need_machine

ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeslim" / "device-arm64"
CPU = "cortex-a72"
DATA_BYTES = 60 << 20
NEW_NET = 0x40000000
PORTS = {"adb": 5555, "ssh": 2222}
BASES = {"adb": "/data/local/tmp", "ssh": "/data/local/tmp"}
ADDRESS = f"127.0.0.1:{PORTS['adb']}"
MAIN = Path(__file__).parent / "arm_device.py"
libc = ctypes.CDLL(None, use_errno=True)


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    """What this module starts is in a network namespace of its own; the thread comes back from it at the end."""
    need("adb", "ssh", "ssh-keygen", "qemu-aarch64-static", "ip")
    need_machine("aarch64")
    if not (ROOT / "ready").exists():
        missing(f"no {ROOT}: scripts/make_device_root.sh makes it")
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if libc.unshare(NEW_NET) != 0:
            missing("no network namespace: it takes root")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(before.fileno(), NEW_NET) == 0


@contextmanager
def booted(folder: Path, way: str) -> Iterator[subprocess.Popen[bytes]]:
    """The device with its daemon, ready to answer."""
    scratch = folder / "etc-ssh"
    scratch.mkdir()
    command = ["/usr/lib/android-sdk/platform-tools/adbd"]
    if way == "ssh":
        for path in (scratch / "host", folder / "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        shutil.copy(folder / "user.pub", scratch / "authorized")
        (scratch / "config").write_text(
            f"Port {PORTS['ssh']}\nListenAddress 127.0.0.1\nHostKey /etc/ssh/host\nPidFile none\n"
            f"AuthorizedKeysFile /etc/ssh/authorized\nStrictModes no\nPermitRootLogin prohibit-password\n"
            f"SetEnv QEMU_CPU={CPU}\n"
        )
        (folder / "client").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {PORTS['ssh']}\n  User root\n  IdentityFile {folder}/user\n"
            "  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/config"]
    words = [sys.executable, str(MAIN), str(ROOT), CPU, str(DATA_BYTES), str(scratch), *command]
    place = {**os.environ, "PYTHONPATH": str(MAIN.parents[2])}
    with (folder / "log").open("wb") as log:
        device = subprocess.Popen(words, env=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        await_port(device, PORTS[way], folder / "log")
        if way == "adb":
            place = {**os.environ, "HOME": str(folder)}  # where the server keeps its key
            subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=60, env=place)
            await_phone()
        yield device
    finally:
        device.kill()
        device.wait()
        if way == "adb":
            subprocess.run(["adb", "kill-server"], capture_output=True, timeout=60, check=False)


def await_phone() -> None:
    """Connects adb's server; it says that it has before the device is ready."""
    for _ in range(50):
        subprocess.run(["adb", "connect", ADDRESS], check=True, capture_output=True, timeout=60)
        state = subprocess.run(["adb", "-s", ADDRESS, "get-state"], capture_output=True, timeout=60, check=False)
        if state.stdout.strip() == b"device":
            return
        time.sleep(0.2)
    missing(f"adb has no device: {state.stderr!r}")


def await_port(device: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        if device.poll() is not None:
            missing(f"the device doesn't boot: {log.read_text()[-500:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    missing(f"nobody answers on the device: {log.read_text()[-500:]}")


@pytest.fixture(scope="module", params=["adb", "ssh"])
def way(_network: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``--device`` for the booted device."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESLIM_SSH_CONFIG", str(folder / "client"))
        patch.setattr("edgeslim.devices.ssh.BASES", (BASES["ssh"],))
        with booted(folder, request.param):
            yield "adb" if request.param == "adb" else "ssh:board"


@pytest.fixture(autouse=True)
def _left_clean(way: str) -> Iterator[None]:
    """After each test nothing of edgeslim is on the device."""
    yield
    with open_device(way, "aarch64") as device:
        assert shell(device, f"ls {BASES['adb']}").split() == ["edgeslim-check"]
    assert await_text(lambda: " ".join(running()), "")


def running() -> list[str]:
    """Programs of checks that run on the device, as this host sees them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes()
            found += [path.parent.name] if b"/edgeslim-check/" in words and b"qemu" in words else []
    return found


def shell(device: Device, script: str) -> str:
    return device._channel.shell(script, timeout_s=30).stdout  # type: ignore[attr-defined, no-any-return]


def measure(device: Device, model: Path, feeds: list[Feed], **more: Any) -> runner.DeviceRun:
    settings = {"threads": 1, "rounds": 2, "warm_up": 0, "timeout_s": 120.0, **more}
    return runner.run_on_device(
        device, model=model, weights=model.parent / "weights.bin", packed=None, feeds=feeds, **settings
    )


def test_the_same_bits_come_back(way: str, integer_cnn: Path, pictures: list[Feed]) -> None:
    with open_device(way, "aarch64") as device:
        assert (device.isa, device.libc, device.real) == ("aarch64", "glibc", True)
        there = measure(device, integer_cnn, pictures)
    here = open_runner(integer_cnn)
    for feed, output in zip(pictures, there.outputs, strict=True):
        np.testing.assert_array_equal(output["y"], here(feed)["y"])
    assert len(there.run_ms) == 2
    assert there.facts["cpu"] == "implementer 0x41, part 0xd08"
    told = f"{there.facts} {device.label}"
    assert "127.0.0.1" not in told
    assert "5555" not in told


def test_two_checks_at_once(way: str) -> None:
    with open_device(way, "aarch64"), pytest.raises(DeviceError, match="another check is at work"):
        open_device(way, "aarch64").__enter__()


def test_out_of_space(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * ((DATA_BYTES >> 20) + 4))
    with open_device(way, "aarch64") as device, pytest.raises(DeviceError, match="MB free"):
        device.push({"large": large})
    monkeypatch.setattr("edgeslim.devices.remote.RemoteDevice._need", lambda *_: None)  # it fills while it is written
    with open_device(way, "aarch64") as device, pytest.raises(DeviceError, match="can't be written"):
        device.push({"large": large})


def test_a_hung_run_is_killed_there(way: str, tmp_path: Path) -> None:
    script = tmp_path / "hang"
    script.write_text("#!/bin/sh\necho $$ >hung\nexec sleep 300\n")
    with open_device(way, "aarch64") as device:
        device.push({"hang": script})
        with pytest.raises(DeviceError, match="has not ended after 2 s"):
            device.run(["hang"], timeout_s=2)
        assert shell(device, f"cat {device.path('hung')}").strip().isdigit(), "it did run"
        assert await_text(lambda: " ".join(running()), "")


def await_text(ask: Callable[[], str], wanted: str) -> bool:
    for _ in range(60):
        if ask().strip() == wanted:
            return True
        time.sleep(0.2)
    return False


def test_programs_of_another_machine(
    way: str, integer_cnn: Path, pictures: list[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_device(way, "aarch64") as device:
        with pytest.raises(DeviceError, match="runs aarch64 programs"):
            _check_isa(device, "armhf", way)
        foreign = runner.build_runner("armhf", "glibc")
        monkeypatch.setattr(runner, "build_runner", lambda *_: foreign)
        with pytest.raises(DeviceError, match="can't run aarch64 programs"):
            measure(device, integer_cnn, pictures)


OLD = """\
struct base { const void *(*api)(unsigned); const char *(*version)(void); };
static const void *api(unsigned version) { (void)version; return 0; }
static const char *version(void) { return "1.2.3"; }
static const struct base it = {api, version};
const struct base *OrtGetApiBase(void) { return &it; }
"""


def test_a_runtime_that_is_missing_or_old(way: str, integer_cnn: Path, pictures: list[Feed], tmp_path: Path) -> None:
    (tmp_path / "none.so").write_text("no library")
    (tmp_path / "old.c").write_text(OLD)
    old = tmp_path / "old.so"
    subprocess.run(["aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-o", str(old), str(tmp_path / "old.c")], check=True)
    with open_device(way, "aarch64") as device:
        with pytest.raises(DeviceError, match="can't be loaded there"):
            measure(device, integer_cnn, pictures, library=str(tmp_path / "none.so"))
        with pytest.raises(DeviceError, match=r"too old: .*1\.2\.3"):
            measure(device, integer_cnn, pictures, library=str(old))


def test_unplugged_half_way(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is ended there, and the next check takes over what the lost one left once its time has passed."""
    monkeypatch.setattr("edgeslim.devices.remote.LOCK_SLACK_S", 1)
    slow = tmp_path / "hang"
    slow.write_text("#!/bin/sh\nsleep 300\n")
    unplug = threading.Timer(3, cut_adb if way == "adb" else cut_ssh)
    with open_device(way, "aarch64") as device:
        device.push({"hang": slow})
        unplug.start()
        with pytest.raises(DeviceError, match=r"no connection|closed"):
            device.run(["hang"], timeout_s=8)
    unplug.join()
    if way == "adb":
        await_phone()
        with pytest.raises(DeviceError, match="another check is at work"):
            open_device(way, "aarch64").__enter__()
    assert await_text(lambda: "free" if is_free(way) else "", "free")


def cut_adb() -> None:
    subprocess.run(["adb", "disconnect", ADDRESS], capture_output=True, check=False)


def cut_ssh() -> None:
    """Ends the daemon's processes for connections, and leaves the one that listens."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"/usr/sbin/sshd" in words and b"-R" in words:
                os.kill(int(path.parent.name), signal.SIGKILL)


def is_free(way: str) -> bool:
    try:
        with open_device(way, "aarch64"):
            return True
    except DeviceError:
        return False
