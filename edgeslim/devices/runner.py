"""The runner, compiled for a device, and one measurement with it.

``devices/c/runner.c`` runs any model by ONNX Runtime's C interface: each feed once for its outputs, then the last one a
number of times for latency. It decodes ``weights.esz`` itself, so what a device is judged by is the package as it
ships.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeslim.cache import hash_file, hash_parts
from edgeslim.core import Feed
from edgeslim.devices.device import Device, Isa, Libc
from edgeslim.devices.feed_file import read_feeds, write_feeds
from edgeslim.devices.instructions import Instructions, OperatorShare, count_instructions, count_operators
from edgeslim.devices.local import MARKS_NAME, PLUGIN_NAME
from edgeslim.devices.runtimes import runtime_headers, runtime_library, runtime_root
from edgeslim.errors import CheckError, DeviceError, EdgeslimError, MissingToolError
from edgeslim.replacing import replaced_when_whole

__all__ = ["DeviceRun", "build_plugin", "build_runner", "device_facts", "run_on_device"]

SOURCES = Path(__file__).parent / "c"
CODEC = Path(__file__).parent.parent / "codec" / "c"
LOADER = Path(__file__).parent.parent / "runtime" / "c"
COMPILE_S = 120
_FLAGS = ("-std=gnu99", "-DEDGESLIM_WITH_ESZ")
_ISA_FLAGS: Mapping[Isa, tuple[str, ...]] = {
    "armhf": ("-O3", "-march=armv7-a", "-mfpu=neon-vfpv4"),
    "aarch64": ("-Os", "-DESZ_LEAN"),
    "x86_64": ("-Os", "-DESZ_LEAN"),
}
"""As the loader's CMake package compiles the decoder: what is measured is what ships."""
PROFILE = "profile"
RUNNER_NAME, LIBRARY_NAME = "edgeslim-runner", "libonnxruntime.so"
_COMPILERS: Mapping[tuple[Isa, Libc], tuple[str, str]] = {
    ("x86_64", "glibc"): ("gcc", "gcc"),
    ("aarch64", "glibc"): ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("armhf", "glibc"): ("arm-linux-gnueabihf-gcc", "gcc-arm-linux-gnueabihf"),
}
_NDK_TRIPLETS: Mapping[str, str] = {"aarch64": "aarch64-linux-android24", "armhf": "armv7a-linux-androideabi24"}
_STATUS = {
    3: "it can't read its inputs",
    4: "ONNX Runtime can't be loaded there",
    5: "its ONNX Runtime is too old",
    6: "ONNX Runtime refuses the model or a run",
    7: "outputs can't be written: is it full?",
    8: "the weights can't be decoded",
}


_FOREIGN = ("Exec format error", "not executable", "syntax error")
"""What shells say of another machine's program; some take it for a script."""


@dataclass(frozen=True, kw_only=True)
class DeviceRun:
    """What came back: outputs by feed, times in milliseconds, bytes, and, of an emulated machine, instructions."""

    outputs: tuple[Feed, ...]
    runtime: str
    decode_ms: float
    load_ms: float
    first_run_ms: float
    run_ms: tuple[float, ...]
    peak_bytes: int
    instructions: Instructions | None = None
    operators: tuple[OperatorShare, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def build_runner(isa: Isa, libc: Libc) -> Path:
    """The runner for a device, compiled once for the same sources and compiler and kept beside the runtimes.

    Raises:
        MissingToolError: no compiler for the device, or no headers.
        CheckError: it doesn't compile.
    """
    compiler, headers = _compiler(isa, libc), runtime_headers()
    sources = [SOURCES / "runner.c", LOADER / "esz_load.c", CODEC / "esz.c"]
    words = [compiler, *_FLAGS, *_ISA_FLAGS[isa]]
    facts = Path(compiler).stat()
    read = [*sorted(SOURCES.glob("*.h")), *sorted(LOADER.glob("*.[ch]")), *sorted(CODEC.glob("*.[ch]")), sources[0]]
    key = hash_parts(*words, str(facts.st_size), str(facts.st_mtime_ns), *(hash_file(path) for path in read))
    out = runtime_root() / "runners" / key[:32] / RUNNER_NAME
    if not out.is_file():
        with replaced_when_whole(out) as temporary:
            words += [*(f"-I{folder}" for folder in (headers, CODEC, LOADER)), "-o", str(temporary), *map(str, sources)]
            _compile([*words, "-rdynamic", "-ldl"], "the runner")
    return out


def build_plugin(folder: Path) -> Path:
    """Compiles the emulator's plugin for this host into ``folder``.

    Raises:
        MissingToolError: no C compiler.
        CheckError: it doesn't compile.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingToolError("--device qemu", "no C compiler", hint="apt-get install gcc libc6-dev")
    out = folder / PLUGIN_NAME
    _compile([compiler, "-O2", "-shared", "-fPIC", "-o", str(out), str(SOURCES / "count_instructions.c")], "the plugin")
    return out


def run_on_device(
    device: Device,
    *,
    model: Path,
    weights: Path,
    packed: Path | None,
    feeds: Sequence[Feed],
    threads: int,
    rounds: int,
    warm_up: int,
    timeout_s: float,
    library: str | None = None,
    operators: bool = False,
) -> DeviceRun:
    """Runs ``model`` on ``device``: every feed once, and the last one ``rounds`` times.

    ``packed`` is decoded there to what ``weights`` is called; without it ``weights`` itself is copied. ``operators``
    counts the instructions of an emulated machine by operator, in a second run.

    Raises:
        DeviceError: the device is out of reach, full, or busy, the runtime on it is too old, or a run hangs.
        CheckError: the model doesn't run, or what came back is malformed.
        MissingToolError: there is no compiler or no runtime for the device.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-runner-") as name:
        local = Path(name)
        runtime = runtime_library(device.isa, device.libc, given=library)
        write_feeds(local / "in.feed", feeds)
        files = {
            RUNNER_NAME: build_runner(device.isa, device.libc),
            LIBRARY_NAME: runtime,
            f"model{model.suffix}": model,  # by which the runtime knows the format
            "in.feed": local / "in.feed",
        }
        files |= {weights.name: weights} if packed is None else {packed.name: packed}
        if device.emulated:
            files[PLUGIN_NAME] = build_plugin(local)
        device.push(files)
        words = [RUNNER_NAME, "--runtime", device.path(LIBRARY_NAME), "--model", device.path(f"model{model.suffix}")]
        words += ["--feeds", device.path("in.feed"), "--threads", str(threads)]
        if packed is not None:
            words += ["--esz", device.path(packed.name), "--weights", device.path(weights.name)]
        times = ["--outputs", device.path("out.feed"), "--rounds", str(rounds), "--warm-up", str(warm_up)]
        times += ["--counted-clock", "1"] if device.emulated else []
        told = _run(device, [*words, *times], timeout_s)
        device.pull("out.feed", local / "out.feed")
        outputs = read_feeds(local / "out.feed", expected=len(feeds), where=device.label)
        counted = shares = None
        if device.emulated:
            device.pull(MARKS_NAME, local / MARKS_NAME)
            counted = count_instructions(local / MARKS_NAME, device.label)
            shares = _operators(device, words, local, timeout_s) if operators else None
        return replace(
            told,
            outputs=tuple(outputs),
            instructions=counted,
            operators=shares or (),
            facts=device_facts(device),
        )


def device_facts(device: Device) -> Mapping[str, str]:
    """CPU, governor and temperature of a device as far as it tells them; nothing that identifies the one unit."""
    fields: dict[str, str] = {}
    for line in device.read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip()[:80])
    facts = {}
    if "cpu part" in fields:
        facts["cpu"] = f"implementer {fields.get('cpu implementer', '?')}, part {fields['cpu part']}"
    elif "model name" in fields:
        facts["cpu"] = fields["model name"]
    governor = device.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    heat = device.read("/sys/class/thermal/thermal_zone0/temp").strip()
    if governor:
        facts["governor"] = governor[:40]
    if heat.lstrip("-").isdigit() and len(heat) <= 8:
        facts["temperature_celsius"] = f"{int(heat) / 1000:.1f}"
    return facts


def _run(device: Device, words: Sequence[str], timeout_s: float) -> DeviceRun:
    """The figures that the runner prints, without outputs."""
    done = device.run(words, timeout_s=timeout_s)
    if done.status != 0:
        raise _explain(device, done.status, done.stderr)
    try:
        told = json.loads(done.stdout.strip().splitlines()[-1])
        return DeviceRun(
            outputs=(),
            runtime=str(told["runtime"])[:40],
            decode_ms=_finite(told["decode_ms"]),
            load_ms=_finite(told["load_ms"]),
            first_run_ms=_finite(told["first_run_ms"]),
            run_ms=tuple(_finite(value) for value in told["run_ms"]),
            peak_bytes=int(told["peak_bytes"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckError(
            device.label, f"the runner said {done.stdout[-200:]!r}", expected="its line of JSON"
        ) from error


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{number}")
    return number


def _explain(device: Device, status: int, stderr: str) -> EdgeslimError:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    said = lines[-1][:400] if lines else "nothing"
    if not said.startswith("runner: ") and (status in (126, 127) or any(text in stderr for text in _FOREIGN)):
        return DeviceError(device.label, f"it can't run {device.isa} programs", expected=f"a machine for {device.isa}")
    if status in (4, 5, 7):
        return DeviceError(
            device.label, f"{_STATUS[status]}: {said}", hint="--runtime FILE" if status in (4, 5) else ""
        )
    reason = _STATUS.get(status, f"the runner ended with status {status}")
    return CheckError(device.label, f"{reason}: {said}", expected="the package's model to run there")


def _operators(device: Device, words: Sequence[str], local: Path, timeout_s: float) -> tuple[OperatorShare, ...]:
    more = ["--outputs", device.path("out.feed"), "--rounds", "1", "--warm-up", "1", "--profile", device.path(PROFILE)]
    told = device.run([*words, *more], timeout_s=timeout_s)
    if told.status != 0:
        raise _explain(device, told.status, told.stderr)
    device.pull(MARKS_NAME, local / MARKS_NAME)
    found = [line for line in told.stdout.splitlines() if line.startswith("profile: ")]
    if not found:
        raise CheckError(device.label, "the runner names no profile", expected="ONNX Runtime's profile")
    device.pull(Path(found[-1].removeprefix("profile: ")).name, local / "profile.json")
    return count_operators(local / MARKS_NAME, local / "profile.json", device.label)


def _compiler(isa: Isa, libc: Libc) -> str:
    if libc == "bionic":
        home = os.environ.get("ANDROID_NDK_HOME") or os.environ.get("ANDROID_NDK_ROOT") or ""
        found = sorted(Path(home).glob(f"toolchains/llvm/prebuilt/*/bin/{_NDK_TRIPLETS.get(isa, '-')}-clang"))
        if not home or not found:
            raise MissingToolError(
                "--device adb",
                "no Android NDK to compile the runner with",
                hint="ANDROID_NDK_HOME names the folder of one",
            )
        return str(found[0])
    name, package = _COMPILERS[isa, libc]
    compiler = shutil.which(name)
    if compiler is None:
        raise MissingToolError("--device", f"no {name} to compile the runner with", hint=f"apt-get install {package}")
    return compiler


def _compile(words: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_S)
    except subprocess.TimeoutExpired as error:
        raise CheckError(what, f"compiling it took more than {COMPILE_S} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise CheckError(what, f"it doesn't compile: {lines[0][:300] if lines else done.returncode}")
