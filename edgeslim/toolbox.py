"""Which optional tools this machine has, in which version, and what each is good for.

A tool is looked for where its user would say that it is: on PATH, in an environment variable, among the installed
Python packages. Programs are asked for their version all at once, each with a timeout, an empty stdin and a bounded
output, in a process group of its own that is killed afterwards. Python packages aren't imported. Nothing is started
that outlives the question: adb is asked for its devices on request alone, since that starts its server.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Tool", "cpu_features", "find_tools"]

TIMEOUT_S = 0.8
DEVICES_TIMEOUT_S = 8.0
MAX_OUTPUT_BYTES = 4096
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_CPUINFO = Path("/proc/cpuinfo")

State = Literal["found", "missing", "unusable"]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One tool: ``adds`` says what it is good for, ``note`` what is wrong with it or worth knowing."""

    name: str
    state: State
    adds: str
    version: str = ""
    path: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Program:
    """A program by any of ``names``, the first of PATH wins; ``variable`` may name another."""

    name: str
    names: tuple[str, ...]
    adds: str
    ask: tuple[str, ...] = ("--version",)
    variable: str = ""


_PACKAGES = (
    ("optimum-onnx", "optimum", "exports the architectures that it knows; without it torch's own exporter serves"),
    ("transformers", "transformers", "loads Hugging Face models and their tokenizers"),
    ("torch", "torch", "runs float models and exports them"),
    ("onnxruntime", "onnxruntime", "runs the checks: accuracy, latency, load time, memory"),
)
_PROGRAMS = (
    _Program(
        name="C compiler",
        names=("cc", "gcc", "clang"),
        adds="builds the weight coder on installing from source",
        variable="CC",
    ),
    _Program(name="JDK", names=("javac",), adds="compiles and tests the Android loader", ask=("-version",)),
    _Program(
        name="qemu-aarch64", names=("qemu-aarch64-static", "qemu-aarch64"), adds="runs 64-bit ARM programs on this host"
    ),
    _Program(name="qemu-arm", names=("qemu-arm-static", "qemu-arm"), adds="runs 32-bit ARM programs on this host"),
    _Program(
        name="adb",
        names=("adb",),
        adds="reaches Android phones and emulators, whose latency is then the real one",
        ask=("version",),
    ),
    _Program(name="ssh", names=("ssh",), adds="reaches Linux boards, whose latency is then the real one", ask=("-V",)),
    _Program(
        name="aarch64 cross compiler",
        names=("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-clang"),
        adds="builds native code for 64-bit ARM Linux",
    ),
    _Program(
        name="arm cross compiler",
        names=("arm-linux-gnueabihf-gcc", "arm-linux-gnueabihf-clang"),
        adds="builds native code for 32-bit ARM Linux",
    ),
    _Program(
        name="bare-metal ARM compiler", names=("arm-none-eabi-gcc",), adds="builds the C decoder for microcontrollers"
    ),
    _Program(name="cmake", names=("cmake",), adds="configures native builds"),
    _Program(name="ninja", names=("ninja", "ninja-build"), adds="runs native builds, and builds by depfile"),
    _Program(
        name="chromium",
        names=("chromium", "chromium-browser", "google-chrome"),
        adds="shows HTML pages without a screen, and prints them",
    ),
)
_NDK_ADDS = "builds native code for Android"


def find_tools(*, devices: bool = False) -> tuple[Tool, ...]:
    """All tools in a fixed order; ``devices`` also asks adb what is attached, which starts its server."""
    looks: list[Callable[[], Tool]] = [lambda row=row: _look_for_package(*row) for row in _PACKAGES]  # type: ignore[misc]
    looks += [lambda program=program: _look_for_program(program) for program in _PROGRAMS]  # type: ignore[misc]
    looks.append(_look_for_ndk)
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        tools = list(pool.map(lambda look: look(), looks))
    if devices:
        tools = [_with_devices(tool) if tool.name == "adb" else tool for tool in tools]
    return tuple(tools)


def cpu_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """Those of this CPU's instruction sets that decide which kernels ONNX Runtime takes; empty where unknown."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return tuple(flag for flag in CPU_FLAGS if flag in flags.split())


def _look_for_package(distribution: str, module: str, adds: str) -> Tool:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Tool(name=distribution, state="missing", adds=adds, note=f"pip install {distribution}")
    spec = importlib.util.find_spec(module)
    if spec is None:
        return Tool(name=distribution, state="unusable", adds=adds, version=version, note=f'no module "{module}"')
    path = str(Path(spec.origin).parent) if spec.origin else next(iter(spec.submodule_search_locations or ()), "")
    note = ""
    if distribution == "onnxruntime":
        features = cpu_features()
        note = f"{platform.machine()}: " + (", ".join(features) or "no known int8 or vector features")
    return Tool(name=distribution, state="found", adds=adds, version=version, path=path, note=note)


def _look_for_program(program: _Program) -> Tool:
    wanted = os.environ.get(program.variable, "").split()[:1] if program.variable else []
    path = next((found for name in (*wanted, *program.names) if (found := shutil.which(name))), None)
    if path is None:
        return Tool(name=program.name, state="missing", adds=program.adds, note="not on PATH: " + program.names[0])
    status, output, trouble = _ask([path, *program.ask], TIMEOUT_S)
    if trouble or status != 0:
        line = next((line.strip() for line in output.splitlines() if line.strip()), "")
        note = trouble or f"ends with status {status}" + (f": {line[:120]}" if line else "")
        return Tool(name=program.name, state="unusable", adds=program.adds, path=path, note=note)
    return Tool(name=program.name, state="found", adds=program.adds, path=path, version=_version(output))


def _version(output: str) -> str:
    """The first number with dots that stands outside parentheses, which hold a distribution's own."""
    text = re.sub(r"\([^()]*\)", "", output)
    found = re.search(r"\d+(?:\.\d+)+(?:p\d+)?", text) or re.search(r"\b\d+\b", text)
    return found[0] if found else ""


def _look_for_ndk() -> Tool:
    name = "Android NDK"
    named = [
        (key, Path(value)) for key in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT") if (value := os.environ.get(key, ""))
    ]
    sdks = [Path(value) for key in ("ANDROID_HOME", "ANDROID_SDK_ROOT") if (value := os.environ.get(key, ""))]
    beside = [("", folder) for sdk in sdks for folder in sorted((sdk / "ndk").glob("*"), reverse=True)]
    for variable, folder in (*named, *beside):
        text = ""
        with suppress(OSError), (folder / "source.properties").open("rb") as stream:
            text = stream.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")
        revision = re.search(r"^Pkg\.Revision\s*=\s*([\w.-]+)", text, re.MULTILINE)
        if revision:
            return Tool(name=name, state="found", adds=_NDK_ADDS, path=str(folder), version=revision[1])
        if variable:
            note = f"{variable} names a folder without the source.properties of an NDK"
            return Tool(name=name, state="unusable", adds=_NDK_ADDS, path=str(folder), note=note)
    return Tool(name=name, state="missing", adds=_NDK_ADDS, note="ANDROID_NDK_HOME names none")


def _with_devices(adb: Tool) -> Tool:
    if adb.state != "found":
        return adb
    status, output, trouble = _ask([adb.path, "devices"], DEVICES_TIMEOUT_S)
    if trouble or status != 0:
        note = f"adb devices: {trouble or f'ends with status {status}'}"
    else:
        rows = [line.split("\t") for line in output.splitlines() if "\t" in line]
        note = ", ".join(f"{serial} ({state.strip()})" for serial, state, *_ in rows) or "no device is attached"
    return Tool(name=adb.name, state=adb.state, adds=adb.adds, version=adb.version, path=adb.path, note=note)


def _ask(command: Sequence[str], timeout_s: float) -> tuple[int, str, str]:
    """Exit status and the first 4 KiB of output; the third value says why there is no answer, if there is none."""
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        return -1, "", f"can't be started: {error.strerror or error}"
    try:
        output, flooded = _read_some(process, deadline)
        if flooded:
            return 0, output, ""
        status = process.wait(timeout=max(0.01, deadline - time.monotonic()))
    except TimeoutError:
        return -1, "", f"no answer within {timeout_s:g} s"
    except subprocess.TimeoutExpired:
        return -1, "", f"it doesn't end within {timeout_s:g} s"
    else:
        return status, output, ""
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _read_some(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, bool]:
    """What it writes until it stops or has written enough, and whether there was more."""
    assert process.stdout is not None
    pipe, data = process.stdout.fileno(), b""
    while len(data) < MAX_OUTPUT_BYTES:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        chunk = os.read(pipe, MAX_OUTPUT_BYTES - len(data))
        if not chunk:
            return data.decode("utf-8", "replace"), False
        data += chunk
    return data.decode("utf-8", "replace"), True
