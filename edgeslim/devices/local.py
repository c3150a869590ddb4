"""Devices that are no farther than a process: this host, and ARM machines in QEMU's user mode.

Under QEMU a program sees the emulated machine's ``/proc/cpuinfo`` and ``/sys/devices/system/cpu`` (``arm_machines``)
and the C library of the host's cross compiler. Emulated time is not latency; what is exact, and the same in every
process, is the number of instructions, which a plugin counts (``instructions``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeslim.devices.arm_machines import MACHINES, ArmMachine, lay_machine_files
from edgeslim.devices.device import Isa, Libc, Outcome
from edgeslim.errors import DeviceError, MissingToolError, UsageError, near_miss

__all__ = ["MARKS_NAME", "PLUGIN_NAME", "LocalDevice", "open_host", "open_qemu"]

DEFAULT_MACHINES: Mapping[str, str] = {"aarch64": "cortex-a76", "armhf": "cortex-a7"}
PLUGIN_NAME = "count_instructions.so"
MARKS_NAME = "marks.txt"
_EMULATORS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm"}
_TRIPLETS = {"aarch64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}
_PACKAGES = {"aarch64": "libc6-arm64-cross libstdc++6-arm64-cross", "armhf": "libc6-armhf-cross libstdc++6-armhf-cross"}
MAX_OUTPUT_BYTES = 1 << 20
WORK = "edgeslim-work"


class LocalDevice:
    """A folder on this host; with ``prefix`` programs run under an emulator."""

    libc: Libc = "glibc"
    real = False

    def __init__(self, label: str, isa: Isa, folder: Path, *, root: Path | None = None, prefix: Sequence[str] = ()):
        self.label, self.isa, self.emulated = label, isa, bool(prefix)
        self._folder, self._root, self._prefix = folder, root, tuple(prefix)

    def path(self, name: str) -> str:
        """See ``Device``.

        The folder's own name would change an emulated run by some instructions. So there a file that exists is named
        by its place below the root, and what a run is to write by its name alone; so is everything on 32-bit machines,
        whose ``statx`` QEMU doesn't lead below the root.
        """
        if not self.emulated:
            return str(self._folder / name)
        below_root = self.isa == "aarch64" and (self._folder / name).exists()
        return f"/{WORK}/{name}" if below_root else f"./{name}"

    def push(self, files: Mapping[str, Path]) -> None:
        """See ``Device``."""
        try:
            for name, source in files.items():
                shutil.copy(source, self._folder / name)
        except OSError as error:
            raise DeviceError(self.label, error.strerror or str(error), expected="room for the package") from error

    def pull(self, name: str, to: Path) -> None:
        """See ``Device``."""
        try:
            shutil.copyfile(self._folder / name, to)
        except OSError as error:
            raise DeviceError(
                self.label, f"{name}: {error.strerror or error}", expected="what the run wrote"
            ) from error

    def run(self, words: Sequence[str], *, timeout_s: float) -> Outcome:
        """See ``Device``; under the emulator the plugin counts if it was pushed."""
        prefix = list(self._prefix)
        if prefix and (self._folder / PLUGIN_NAME).is_file():
            prefix += ["-plugin", f"{self._folder / PLUGIN_NAME},out={self._folder / MARKS_NAME}"]
        program = f"./{words[0]}" if prefix else self.path(words[0])
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        if self.emulated:  # what lies where in memory decides how some bytes are copied, so it must not change
            environment = {key: environment[key] for key in ("ORT_DISABLE_TELEMETRY", "OMP_NUM_THREADS")}
            fixed = shutil.which("setarch")
            prefix = [*([fixed, "-R"] if fixed else []), *prefix]
        try:
            done = subprocess.run(
                [*prefix, program, *words[1:]],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                self.label, f"{words[0]} has not ended after {timeout_s:.0f} s", hint="it was killed; --device-timeout"
            ) from error
        except OSError as error:
            raise DeviceError(self.label, f"{words[0]} can't be started: {error.strerror}") from error
        return Outcome(
            status=done.returncode,
            stdout=done.stdout[:MAX_OUTPUT_BYTES].decode("utf-8", "replace"),
            stderr=done.stderr[:MAX_OUTPUT_BYTES].decode("utf-8", "replace"),
        )

    def read(self, path: str) -> str:
        """See ``Device``."""
        place = Path(path) if self._root is None else self._root / path.lstrip("/")
        try:
            return place.read_text(encoding="utf-8", errors="replace")[:MAX_OUTPUT_BYTES]
        except OSError:
            return ""


@contextmanager
def open_host() -> Iterator[LocalDevice]:
    """This host, by the same runner that other devices get; its times are this host's, not a device's."""
    machine = os.uname().machine
    if machine not in ("x86_64", "aarch64"):
        raise DeviceError("host", f"a {machine} machine", expected="x86_64 or aarch64")
    isa: Isa = "x86_64" if machine == "x86_64" else "aarch64"
    with tempfile.TemporaryDirectory(prefix="edgeslim-host-") as folder:
        yield LocalDevice("host", isa, Path(folder))


@contextmanager
def open_qemu(name: str, isa: Isa) -> Iterator[LocalDevice]:
    """An ARM machine in QEMU's user mode: ``name`` is one of ``MACHINES``, or empty for the usual one of ``isa``.

    Raises:
        UsageError: an unknown machine, or one of another instruction set.
        MissingToolError: QEMU or the C library of the emulated machine isn't installed.
    """
    name = name or DEFAULT_MACHINES.get(isa, "")
    machine = MACHINES.get(name)
    fitting = [known for known, one in MACHINES.items() if one.isa == isa]
    if machine is None or machine.isa != isa:
        got = f"no machine {name!r}" if machine is None else f"{name} runs {machine.isa} programs"
        raise UsageError(
            "--device",
            got,
            expected=f"one of {', '.join(fitting)}, for a package of {isa}" if fitting else "a package for ARM",
            hint=near_miss(name, fitting),
        )
    emulator = shutil.which(_EMULATORS[isa])
    if emulator is None:
        raise MissingToolError("--device qemu", f"no {_EMULATORS[isa]}", hint="apt-get install qemu-user")
    libraries = _libraries(isa)
    with tempfile.TemporaryDirectory(prefix="edgeslim-qemu-") as folder:
        root = Path(folder) / "root"
        work = root / WORK
        work.mkdir(parents=True)
        _lay_root(root, machine, libraries)
        # Addresses of a region of the guest's own don't hang on what the emulator itself has put where by then.
        own = ("-R", "64G") if isa == "aarch64" else ()  # 32-bit programs have one in any case
        prefix = (emulator, *own, "-cpu", name, "-L", str(root))
        yield LocalDevice(f"qemu {name}", isa, work, root=root, prefix=prefix)


def _libraries(isa: Isa) -> Path:
    """Where the C library of an emulated machine lies: that of the cross compiler."""
    place = Path("/usr") / _TRIPLETS[isa] / "lib"
    if not (place / "libc.so.6").exists() or not any(place.glob("libstdc++.so.6*")):
        raise MissingToolError(
            "--device qemu", f"no C and C++ library for {isa}", hint=f"apt-get install {_PACKAGES[isa]}"
        )
    return place


def _lay_root(root: Path, machine: ArmMachine, libraries: Path) -> None:
    lay_machine_files(root, machine)
    (root / "usr").mkdir()
    for name in ("lib", "usr/lib"):
        (root / name).symlink_to(libraries)
