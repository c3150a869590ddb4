"""An emulated 64-bit ARM device: programs of its root folder run in namespaces of their own, under QEMU's user mode.

    python arm_device.py ROOT CPU DATA_BYTES SCRATCH COMMAND...

The folder (``scripts/make_device_root.sh``) stays as it is: what the device may write to are file systems in memory,
``/data`` with room for ``DATA_BYTES``. ``SCRATCH`` is where ``/etc/ssh`` comes from. The interpreter of ARM programs is
registered in a binfmt_misc of the device's own (Linux 6.7), so nothing of this host changes; all processes of the
device end with this one. Needs root, for a map of all users.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

from edgeslim.devices.arm_machines import MACHINES, lay_machine_files

NEW_NS, NEW_USER, NEW_PID = 0x00020000, 0x10000000, 0x20000000
BIND, REC, READ_ONLY, REMOUNT, DIE_WITH_PARENT = 4096, 16384, 1, 32, 1
HEAD = b"\\x7fELF\\x02\\x01\\x01" + b"\\x00" * 9 + b"\\x02\\x00\\xb7\\x00"
MASK = b"\\xff" * 7 + b"\\x00" + b"\\xff" * 8 + b"\\xfe" + b"\\xff" * 3
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path | str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    words = [item if item is None else item.encode() for item in (source, str(target), kind)]
    check(libc.mount(*words, flags, options and options.encode()), f"mount {target}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def inside(root: Path, cpu: str, data_bytes: int, scratch: Path, command: list[str]) -> None:
    """Never returns: becomes ``command``, the first process of the device."""
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    emulator = shutil.which("qemu-aarch64-static")
    mount("none", "/proc/sys/fs/binfmt_misc", "binfmt_misc")
    Path("/proc/sys/fs/binfmt_misc/register").write_bytes(
        b":aarch64:M::" + HEAD + b":" + MASK + f":{emulator}:FP".encode()
    )
    mount(str(root), root, None, BIND | REC)
    mount("none", root, None, REMOUNT | BIND | READ_ONLY)
    root = Path(os.path.realpath(root))
    for name in ("proc", "sys", "tmp", "root", "run", "dev", "data"):
        mount("tmpfs", root / name, "tmpfs", options=f"size={data_bytes}" if name == "data" else None)
    mount(str(scratch), root / "etc/ssh", None, BIND)
    lay_machine_files(root, MACHINES[cpu])
    (root / "proc/mounts").write_text("tmpfs / tmpfs ro 0 0\ntmpfs /data tmpfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n")
    (root / "data/local/tmp").mkdir(parents=True)
    (root / "run/sshd").mkdir(mode=0o755)
    for name in ("null", "zero", "urandom", "random", "tty", "ptmx"):
        (root / "dev" / name).touch()
        mount(f"/dev/{name}", root / "dev" / name, None, BIND)
    (root / "dev/pts").mkdir()
    mount("/dev/pts", root / "dev/pts", None, BIND | REC)
    os.chroot(root)
    os.chdir("/")
    libraries = "/usr/lib/aarch64-linux-gnu/android"
    place = {"PATH": "/bin:/usr/bin:/usr/sbin", "HOME": "/root", "QEMU_CPU": cpu, "LD_LIBRARY_PATH": libraries}
    os.execve(command[0], command, place)


def main() -> int:
    root, cpu, data_bytes, scratch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    (root / "etc/ssh").mkdir(exist_ok=True)
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    apart, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            unshare(NEW_USER | NEW_NS | NEW_PID)
            os.write(apart[1], b"1")
            os.read(mapped[0], 1)
            os.setgid(0)
            os.setuid(0)
            libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)  # taken away by the change of users
            first = os.fork()
            if first == 0:
                inside(root, cpu, data_bytes, scratch, sys.argv[5:])
            os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 255)
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(77)
    os.close(apart[1])
    if os.read(apart[0], 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 65536")
        os.write(mapped[1], b"1")
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255


if __name__ == "__main__":
    sys.exit(main())
