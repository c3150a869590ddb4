"""Reads a finished package back: an ``.aar`` or a ``.tar.gz``, from anybody.

Nothing in the file is believed. Names must be plain relative paths, each once whatever its case; links, devices and
encrypted entries are refused; what it unpacks to is bounded by a multiple of what it weighs, counted while it is read,
since sizes in headers may lie. Every entry is read to its end, so the archive's own checksums are verified too.

Where the contents lie inside the archive is what ``android`` and ``tarball`` write::

    aar     assets/edgeslim/NAME/{manifest.json, model.onnx, weights.esz, …}, and what makes it an Android library
    tar.gz  NAME/{manifest.json, model.onnx, weights.esz, …}
"""

from __future__ import annotations

import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from edgeslim.errors import BadInputError
from edgeslim.packaging.archive import check_name
from edgeslim.packaging.manifest import Manifest, read_manifest

__all__ = ["Package", "unpack_package"]

MAX_ENTRIES = 2000
ALWAYS_FINE_BYTES = 64 << 20
MAX_RATIO = 20
"""Weights are close to incompressible, so a whole package never unpacks to many times its size."""
_CHUNK_BYTES = 1 << 20
_DEFLATE_AND_STORED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MANIFESTS = {
    "aar": re.compile(r"assets/edgeslim/[^/]+/manifest\.json"),
    "tar": re.compile(r"[^/]+/manifest\.json"),
}
_HINT = "is it whole, and was it built by edgeslim?"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that was unpacked: its own files lie in ``folder``, ``names`` are their paths there."""

    path: Path
    kind: Literal["aar", "tar"]
    folder: Path
    names: tuple[str, ...]
    manifest: Manifest


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


_Entries = Generator[tuple[str, int, _Readable | None], None, None]
"""Name, size and contents of each entry; folders have no contents."""


def unpack_package(path: Path, folder: Path) -> Package:
    """Unpacks ``path`` below the existing ``folder``, all of it, and reads its manifest.

    Raises:
        BadInputError: it is no package, it is damaged, or it holds what no package holds.
    """
    kind = _kind(path)
    try:
        names = tuple(_unpack(path, kind, folder))
    except BadInputError:
        raise
    except (
        OSError,  # bad gzip data among them
        EOFError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        ValueError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].replace(str(folder), "…")
        raise BadInputError(
            str(path), f"can't be unpacked: {reason}", expected="a whole package", hint=_HINT
        ) from error
    manifests = [name for name in names if _MANIFESTS[kind].fullmatch(name)]
    if len(manifests) != 1:
        raise BadInputError(
            str(path),
            f"{len(manifests)} manifests" if manifests else "no manifest.json",
            expected="one model" + (" in assets/edgeslim/NAME" if kind == "aar" else " in a folder NAME"),
            hint="" if manifests else _HINT,
        )
    inner = manifests[0].removesuffix("manifest.json")
    manifest = read_manifest(folder / manifests[0], f"{path}: manifest.json")
    if manifest.name != inner.rstrip("/").rpartition("/")[2]:
        raise BadInputError(
            f"{path}: manifest.json", f'name "{manifest.name}"', expected=f'"{inner}", the folder that it lies in'
        )
    return Package(
        path=path,
        kind=kind,
        folder=folder / inner,
        names=tuple(sorted(name.removeprefix(inner) for name in names if name.startswith(inner))),
        manifest=manifest,
    )


def _kind(path: Path) -> Literal["aar", "tar"]:
    expected = "an .aar or a .tar.gz that edgeslim built"
    if path.is_dir():
        inside = sorted(item.name for pattern in ("*.aar", "*.tar.gz") for item in path.glob(pattern))
        hint = f"name the package: {path / inside[0]}" if inside else ""
        raise BadInputError(str(path), "a folder", expected=expected, hint=hint)
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected=expected) from error
    if magic.startswith(b"\x1f\x8b"):
        return "tar"
    if magic.startswith(b"PK\x03\x04"):
        return "aar"
    raise BadInputError(str(path), f"it begins with {magic.hex() or 'nothing'}", expected=expected, hint=_HINT)


def _unpack(path: Path, kind: str, folder: Path) -> Iterator[str]:
    """Writes every file of the archive below ``folder``; yields their names."""
    allowed = max(ALWAYS_FINE_BYTES, MAX_RATIO * path.stat().st_size)
    seen: set[str] = set()
    left = allowed
    entries = _zip_entries(path, allowed) if kind == "aar" else _tar_entries(path, allowed)
    with closing(entries):
        for number, (name, size, stream) in enumerate(entries):
            if number >= MAX_ENTRIES:
                raise BadInputError(str(path), f"more than {MAX_ENTRIES} entries", expected="a few dozen", hint=_HINT)
            _check_entry(path, name, seen)
            if size > left:
                raise _too_large(path, allowed)
            left -= size
            if stream is not None:
                _write(folder / name, stream, size, f"{path}: {name}")
                yield name


def _zip_entries(path: Path, allowed: int) -> _Entries:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.orig_filename  # the other one ends at a zero byte
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(path, name, "a link" if stat.S_ISLNK(mode) else "a special file")
            if info.flag_bits & 1 or info.compress_type not in _DEFLATE_AND_STORED:
                got = "encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"
                raise BadInputError(f"{path}: {name}", got, expected="a stored or deflated entry", hint=_HINT)
            if info.is_dir():
                yield name.rstrip("/"), 0, None
                continue
            with archive.open(info) as stream:
                yield name, info.file_size, stream
            if name.endswith(".jar"):
                _check_jar(path, archive.open(info), name, allowed)


def _check_jar(path: Path, stream: IO[bytes], name: str, allowed: int) -> None:
    """A jar is opened later, to tell what it adds to a download: its own entries are bounded here."""
    with stream, zipfile.ZipFile(stream) as jar:
        if sum(info.file_size for info in jar.infolist()) > allowed:
            raise _too_large(Path(f"{path}: {name}"), allowed)


def _tar_entries(path: Path, allowed: int) -> _Entries:
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as unzipped:
        bounded = _Bounded(unzipped, path, allowed)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
            for info in archive:
                name = info.name
                if info.isdir():
                    yield name, 0, None
                elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                    raise _not_plain(path, name, "a link" if info.issym() or info.islnk() else "a special file")
                else:
                    stream = archive.extractfile(info)
                    assert stream is not None
                    yield name, info.size, stream
        while bounded.read(_CHUNK_BYTES):  # to the end, where gzip's checksum stands
            pass


class _Bounded:
    """A stream that gives up once it has given more than is allowed: a tar's headers may ask for any amount."""

    def __init__(self, stream: _Readable, path: Path, allowed: int) -> None:
        self._stream = stream
        self._path = path
        self._allowed = allowed
        self._left = allowed + ALWAYS_FINE_BYTES  # headers and padding come on top of the files

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path, self._allowed)
        return data


def _check_entry(path: Path, name: str, seen: set[str]) -> None:
    try:
        check_name(name)
    except BadInputError as error:
        raise BadInputError(str(path), f"an entry named {name[:200]!r}", expected=error.expected, hint=_HINT) from error
    folded = name.casefold()
    if folded in seen:
        raise BadInputError(str(path), f'two entries for "{name}"', expected="one entry a name, case ignored")
    seen.add(folded)


def _write(place: Path, stream: _Readable, size: int, where: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with place.open("xb") as target:
        for chunk in _chunks(stream):
            written += len(chunk)
            if written > size:
                break
            target.write(chunk)
    if written != size:
        raise BadInputError(where, f"{written:,} bytes or more", expected=f"{size:,}, as its header says", hint=_HINT)


def _chunks(stream: _Readable) -> Iterable[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _not_plain(path: Path, name: str, got: str) -> BadInputError:
    return BadInputError(f"{path}: {name[:200]}", got, expected="plain files only", hint=_HINT)


def _too_large(path: Path, allowed: int) -> BadInputError:
    return BadInputError(
        str(path), f"it unpacks to more than {allowed:,} bytes", expected=f"at most {MAX_RATIO} times its own size"
    )
