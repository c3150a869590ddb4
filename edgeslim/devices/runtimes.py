"""ONNX Runtime for devices: its library for each machine and the headers that the runner is compiled against.

``--runtime FILE`` names a library of one's own. Otherwise a release that packages bring is fetched once by the ordinary
clients of their registries (npm, pip) and kept in edgeslim's cache folder; every file is known by its SHA-256. No one
place has all machines, so the versions differ, and each report says which one ran.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeslim.cache import default_root, hash_file
from edgeslim.devices.device import Isa, Libc
from edgeslim.errors import BadInputError, MissingToolError
from edgeslim.replacing import replaced_when_whole

__all__ = ["runtime_headers", "runtime_library", "runtime_root"]

FETCH_S = 900
MAX_MEMBER_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file of an archive: the ``package`` that a client fetches, an archive in it if any, the path and the hash."""

    package: str
    path: str
    sha256: str
    inside: str = ""
    platform: str = ""


_NODE = "onnxruntime-node@1.30.0"
_UNITY = "com.github.asus4.onnxruntime@0.4.9"
_AAR = "package/Plugins/Android/onnxruntime.aar"
_LIBRARIES: Mapping[tuple[Isa, Libc], _Member] = {
    ("aarch64", "glibc"): _Member(
        package=_NODE,
        path="package/bin/napi-v6/linux/arm64/libonnxruntime.so.1",
        sha256="1f549d46250b005580b597f4164984aaf75b3bcb9f3aeb07c7f8a8fe60b23c76",
    ),
    ("x86_64", "glibc"): _Member(
        package=_NODE,
        path="package/bin/napi-v6/linux/x64/libonnxruntime.so.1",
        sha256="ffb75a925ba05e47b235bb66e3e3911714a80b328a9c9425539feb204aa32a23",
    ),
    ("armhf", "glibc"): _Member(
        package="sherpa-onnx-core==2.0.1",
        platform="manylinux_2_35_armv7l",
        path="sherpa_onnx/lib/libonnxruntime.so",
        sha256="4636872e9b50f985b7ecaa55a6829dee81bdb96f77010b5bc0a4059e51d872dc",
    ),
    ("aarch64", "bionic"): _Member(
        package=_UNITY,
        inside=_AAR,
        path="jni/arm64-v8a/libonnxruntime.so",
        sha256="3a602b463d434d20fbf69cd1b8bdfd2f86a2cb67d08de97aec8f62476fa4ab87",
    ),
    ("armhf", "bionic"): _Member(
        package=_UNITY,
        inside=_AAR,
        path="jni/armeabi-v7a/libonnxruntime.so",
        sha256="76fcaa5a49e939295cdd8b2f304a8fda0fa52aeca8fc4dd8215ee29089e00ccb",
    ),
}
_HEADERS = tuple(
    _Member(package=_UNITY, inside=_AAR, path=f"headers/{name}", sha256=digest)
    for name, digest in (
        ("onnxruntime_c_api.h", "acc0cf4b3f28d39339c76770d76164bb7a0637dc89f5fde764b4017b632f6743"),
        ("onnxruntime_error_code.h", "5ce3b054e798eced8d14f5b86e98692fd33470463f96194ce0700a2d53dd8721"),
        ("onnxruntime_ep_c_api.h", "e6c986c9e98583f8113b2c6bc3864814883b806d501cf24da4d239c45753e235"),
    )
)


def runtime_library(isa: Isa, libc: Libc, *, given: str | None = None) -> Path:
    """The shared library of ONNX Runtime for a machine; ``given`` is the user's own.

    Raises:
        BadInputError: the user's own is no file.
        MissingToolError: none is known for this machine, or it can't be fetched.
    """
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise BadInputError("--runtime", f"no file {given}", expected="libonnxruntime.so for the device")
        return path
    member = _LIBRARIES.get((isa, libc))
    if member is None:
        raise MissingToolError(
            "--device", f"no ONNX Runtime for {isa} with {libc} is known", hint="--runtime FILE names one"
        )
    return _kept(member)


def runtime_headers() -> Path:
    """The folder of the headers of ONNX Runtime's C interface.

    Raises:
        MissingToolError: they can't be fetched.
    """
    paths = [_kept(member) for member in _HEADERS]
    return paths[0].parent


def _kept(member: _Member) -> Path:
    """The file of ``member`` in the cache folder, fetched if it isn't there or isn't whole."""
    path = _place(member)
    if path.is_file() and hash_file(path) == member.sha256:
        return path
    with tempfile.TemporaryDirectory(prefix="edgeslim-runtime-") as name:
        archive = _fetch(member, Path(name))
        for other in (*_LIBRARIES.values(), *_HEADERS):
            if other.package == member.package:
                _extract(other, archive, _place(other))
    return path


def _place(member: _Member) -> Path:
    folder = runtime_root() / hashlib.sha256(member.package.encode()).hexdigest()[:16]
    return folder / member.path


def runtime_root() -> Path:
    """``runtimes`` in edgeslim's cache folder, also where the cache of builds is switched off."""
    root = default_root() if os.environ.get("EDGESLIM_CACHE") != "off" else Path.home() / ".cache" / "edgeslim"
    return root / "runtimes"


def _fetch(member: _Member, folder: Path) -> Path:
    """The archive of a package, fetched by its registry's own client."""
    npm = not member.platform
    if npm:
        client = shutil.which("npm")
        command = [client or "npm", "pack", "--silent", member.package]
    else:
        client = sys.executable
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--platform", member.platform, "--dest", ".", member.package]
    hint = f"--runtime FILE names an ONNX Runtime of your own; it was to come from {member.package}"
    if client is None:
        raise MissingToolError("ONNX Runtime for the device", "no npm to fetch it by", hint=hint)
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise MissingToolError("ONNX Runtime for the device", "fetching it took too long", hint=hint) from error
    found = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl")]
    if done.returncode != 0 or len(found) != 1:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"status {done.returncode}"
        raise MissingToolError("ONNX Runtime for the device", f"can't be fetched: {reason}", hint=hint)
    return found[0]


def _extract(member: _Member, archive: Path, to: Path) -> None:
    data = _read_member(archive, member.inside or member.path)
    if member.inside:
        inner = archive.with_name("inner.zip")
        inner.write_bytes(data)
        data = _read_member(inner, member.path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != member.sha256:
        raise BadInputError(
            f"{member.package}: {member.path}", f"SHA-256 {digest}", expected=member.sha256, hint="it was changed"
        )
    with replaced_when_whole(to) as temporary:
        temporary.write_bytes(data)


def _read_member(archive: Path, name: str) -> bytes:
    opener: Callable[[Path, str], bytes] = _read_tar if archive.suffix == ".tgz" else _read_zip
    try:
        return opener(archive, name)
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise BadInputError(archive.name, f"{name} can't be read: {error}", expected="the package's archive") from error


def _read_tar(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(name)
        if stream is None:
            raise KeyError(name)
        return stream.read(MAX_MEMBER_BYTES)


def _read_zip(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as packed, packed.open(name) as stream:
        return stream.read(MAX_MEMBER_BYTES)
