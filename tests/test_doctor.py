"""``edgeslim doctor``: programs that are there, that are missing, that fail, hang and talk without end."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslim import toolbox
from edgeslim.toolbox import Tool, cpu_features, find_tools

SH = "/bin/sh"
VARIABLES = ("CC", "ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_HOME", "ANDROID_SDK_ROOT")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An empty PATH; puts programs of one line of shell on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(name: str, script: str, mode: int = 0o755) -> None:
        (folder / name).write_text(f"#!{SH}\n{script}\n", encoding="utf-8")
        (folder / name).chmod(mode)

    return put


def look(name: str, **options: Any) -> Tool:
    (tool,) = (tool for tool in find_tools(**options) if tool.name == name)
    return tool


def test_an_empty_machine(bench: Any) -> None:
    tools = find_tools()
    states = {tool.name: tool.state for tool in tools}
    assert len(states) == len(tools) >= 16
    wanted = {"C compiler", "JDK", "qemu-aarch64", "qemu-arm", "adb", "ssh", "cmake", "ninja", "Android NDK"}
    assert wanted <= {name for name, state in states.items() if state == "missing"}
    assert states["onnxruntime"] == states["transformers"] == "found"
    for tool in tools:
        assert tool.adds
        assert "\n" not in tool.adds + tool.note
        assert tool.state != "missing" or (tool.note and not tool.path and not tool.version)


ANSWERS = {
    "cc (Debian 12.2.0-14) 12.2.0\nCopyright": "12.2.0",
    "OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15": "9.2p1",
    "Android Debug Bridge version 1.0.41\nVersion 28.0.2": "1.0.41",
    "javac 21": "21",
    "/usr/bin/chromium: 9: [: unexpected\nChromium 131.0.6778.85 built on Debian 12": "131.0.6778.85",
    "no number": "",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_versions(bench: Any, answer: str) -> None:
    bench("cc", f"cat <<'END'\n{answer}\nEND".replace("cat", "/bin/cat"))
    tool = look("C compiler")
    assert (tool.state, tool.version) == ("found", ANSWERS[answer])


def test_a_version_on_stderr(bench: Any) -> None:
    bench("ssh", "echo OpenSSH_9.9p1 >&2")
    assert look("ssh").version == "9.9p1"


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo it is broken >&2; exit 3", "ends with status 3: it is broken"),
        ("exit 1", "ends with status 1"),
        ("kill -9 $$", "ends with status -9"),
        ("while :; do :; done", "no answer within"),
        ("exec 1>&- 2>&-; while :; do :; done", "it doesn't end within"),
        ("while :; do :; done & echo 1.0", "no answer within"),
    ],
)
def test_programs_that_are_unusable(bench: Any, monkeypatch: pytest.MonkeyPatch, script: str, note: str) -> None:
    monkeypatch.setattr(toolbox, "TIMEOUT_S", 0.3)
    bench("qemu-arm", script)
    tool = look("qemu-arm")
    assert (tool.state, tool.version) == ("unusable", "")
    assert note in tool.note
    assert tool.path.endswith("/qemu-arm")


def test_a_program_that_is_no_program(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "cmake").write_bytes(b"\x7fELF nothing")
    (tmp_path / "bin" / "cmake").chmod(0o755)
    tool = look("cmake")
    assert tool.state == "unusable"
    assert "can't be started" in tool.note
    bench("ninja", "echo 1.2", mode=0o644)
    assert look("ninja").state == "missing"


def test_a_program_that_talks_without_end(bench: Any) -> None:
    bench("ninja", "while :; do echo 1.2.3 and more; done")
    started = time.monotonic()
    assert (look("ninja").state, look("ninja").version) == ("found", "1.2.3")
    assert time.monotonic() - started < 1.5


def test_all_of_them_hanging_take_one_timeout(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolbox, "TIMEOUT_S", 0.4)
    for names in ("cc", "javac", "qemu-aarch64", "qemu-arm", "adb", "ssh", "cmake", "ninja"):
        bench(names, f"echo $$ >> {tmp_path}/pids; exec /bin/sleep 60")
    started = time.monotonic()
    unusable = [tool for tool in find_tools() if tool.state == "unusable"]
    assert time.monotonic() - started < 1.4
    assert len(unusable) == 8
    for pid in (tmp_path / "pids").read_text(encoding="utf-8").split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_cc_names_another_compiler(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("cc", "echo 1.0")
    bench("tcc", "echo 2.0")
    monkeypatch.setenv("CC", "tcc -m64")
    assert look("C compiler").version == "2.0"


def test_the_ndk(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("26.1.1", "27.0.1"):
        folder = tmp_path / "sdk" / "ndk" / number
        folder.mkdir(parents=True)
        (folder / "source.properties").write_text(f"Pkg.Desc = NDK\nPkg.Revision = {number}\n", encoding="utf-8")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert (look("Android NDK").state, look("Android NDK").version) == ("found", "27.0.1")
    monkeypatch.setenv("ANDROID_NDK_ROOT", str(tmp_path / "sdk" / "ndk" / "26.1.1"))
    assert look("Android NDK").version == "26.1.1"
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    assert look("Android NDK").state == "unusable"
    assert "ANDROID_NDK_HOME names a folder without" in look("Android NDK").note


ADB = """case "$1" in
version) echo "Android Debug Bridge version 1.0.41";;
devices) touch {mark}; printf 'List of devices attached\\n{rows}\\n';;
esac"""


@pytest.mark.parametrize(
    ("rows", "note"),
    [("emulator-5554\\tdevice\\nabc\\tunauthorized", "emulator-5554 (device), abc (unauthorized)"), ("", "no device")],
)
def test_devices_are_asked_for_on_request_alone(bench: Any, tmp_path: Path, rows: str, note: str) -> None:
    bench("adb", ADB.format(mark=tmp_path / "asked", rows=rows).replace("touch", "/bin/touch"))
    assert (look("adb").version, look("adb").note) == ("1.0.41", "")
    assert not (tmp_path / "asked").exists()
    assert note in look("adb", devices=True).note
    assert (tmp_path / "asked").exists() or not Path("/bin/touch").exists()


def test_devices_without_adb(bench: Any) -> None:
    assert look("adb", devices=True).state == "missing"


def test_cpu_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name: x\nflags\t\t: fpu avx2 avx512_vnni avx2x\n", encoding="utf-8")
    assert cpu_features(path) == ("avx2", "avx512_vnni")
    path.write_text("Features\t: fp asimd asimddp i8mm\n", encoding="utf-8")
    assert cpu_features(path) == ("asimddp", "i8mm")
    assert cpu_features(tmp_path / "none") == ()


# The command


def doctor(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeslim", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_never_fails(bench: Any, tmp_path: Path) -> None:
    bench("cc", "exit 9")
    bench("ssh", "exec /bin/sleep 60")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = doctor(folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"found", "missing", "unusable"}
    assert any(line.startswith("unusable  C compiler") and "ends with status 9" in line for line in lines)
    assert " found; edgeslim " in lines[-1]
    assert after.ru_utime - before.ru_utime < 1.0  # of a second and a half, the timeout is the rest


def test_json(bench: Any, tmp_path: Path) -> None:
    bench("cmake", "echo cmake version 3.31.2")
    done = doctor("--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    plain = json.loads(done.stdout)
    assert set(plain) == {"schema", "edgeslim", "python", "host", "tools"}
    (cmake,) = (tool for tool in plain["tools"] if tool["name"] == "cmake")
    assert set(cmake) == {"name", "state", "adds", "version", "path", "note"}
    assert (cmake["state"], cmake["version"]) == ("found", "3.31.2")


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    code = "import sys\nfrom edgeslim.toolbox import find_tools\nfind_tools()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "transformers", "onnxruntime", "optimum"} & set(done.stdout.split())
