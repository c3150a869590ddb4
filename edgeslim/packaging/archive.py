"""Zip files that come out byte for byte the same from the same contents: AARs and jars.

Nothing of the machine gets in: entries are sorted by name, every date is 1980-01-01 (the zip format's zero), every
mode is 0644, and folders have no entries of their own. Deflated bytes hang on the zlib version, so a file that is
compared across machines is written with ``stored`` entries only.

An archive is written beside its place and renamed when it is whole.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgeslim.errors import BadInputError
from edgeslim.replacing import replaced_when_whole

__all__ = ["Entry", "apk_download_bytes", "check_name", "deflated_bytes", "write_zip"]

_CHUNK_BYTES = 1 << 20
_DEFLATE_LEVEL = 9
_ZIP_OVERHEAD_BYTES = 30 + 46
"""Local header and central directory record of one entry, without its name, which stands in both."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of an archive."""

    name: str
    """Path inside the archive, with ``/``, relative, without ``.`` and ``..``."""
    data: bytes | Path
    """The contents, or the file that has them."""
    stored: bool = False
    """Whether the bytes stay uncompressed."""


def write_zip(out: Path, entries: Iterable[Entry]) -> Path:
    """Writes the archive ``out`` and returns its path.

    Raises:
        BadInputError: a name that would leave the archive's folder, or two entries of one name.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    seen: set[str] = set()
    for entry in ordered:
        check_name(entry.name)
        # Android's build unpacks on case-insensitive file systems too.
        folded = entry.name.casefold()
        if folded in seen:
            raise BadInputError(str(out), f'two entries for "{entry.name}"', expected="one entry a name, case ignored")
        seen.add(folded)
    with replaced_when_whole(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for entry in ordered:
            _write_entry(archive, entry)
    return out


def _write_entry(archive: zipfile.ZipFile, entry: Entry) -> None:
    info = zipfile.ZipInfo(entry.name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, wherever it is written
    info.external_attr = 0o100644 << 16
    info.compress_type = zipfile.ZIP_STORED if entry.stored else zipfile.ZIP_DEFLATED
    info.file_size = len(entry.data) if isinstance(entry.data, bytes) else entry.data.stat().st_size
    with _opened(entry.data) as source, archive.open(info, "w") as target:
        for chunk in _chunks(source):
            target.write(chunk)


def check_name(name: str) -> None:
    """Refuses an archive name that isn't a plain relative path.

    Raises:
        BadInputError: an absolute path, ``..``, a backslash, a drive letter, an empty part, a control character.
    """
    path = PurePosixPath(name)
    plain = name == str(path) and not path.is_absolute() and ".." not in path.parts and name not in {"", "."}
    if not plain or any(char in '\\:*?"<>|' or ord(char) < 0x20 for char in name):
        raise BadInputError(
            "archive",
            f"{name!r} can't be the name of an entry",
            expected='a relative path such as "tokenizer/tokenizer.json"',
        )


def apk_download_bytes(aar: Path) -> int:
    """The bytes that an AAR adds to an app's APK, and so to its download.

    An APK takes the assets and native libraries, deflated each for itself, but ``.esz`` files and native libraries as
    they are (``noCompress``, and today's default for ``.so``). Java classes are counted as deflated class files, which
    the dex file that takes their place comes close to.
    """
    total = 0
    with zipfile.ZipFile(aar) as archive:
        for info in archive.infolist():
            name = info.filename
            if name == "classes.jar":
                with archive.open(info) as jar, zipfile.ZipFile(io.BytesIO(jar.read())) as classes:
                    total += sum(deflated_bytes(classes.read(member)) for member in classes.infolist())
            elif name.startswith(("assets/", "jni/", "res/")) and not info.is_dir():
                overhead = _ZIP_OVERHEAD_BYTES + 2 * len(name.encode())
                if name.endswith((".esz", ".so")):
                    total += info.file_size + overhead
                else:
                    with archive.open(info) as member:
                        total += min(_deflated_stream_bytes(member), info.file_size) + overhead
    return total


def deflated_bytes(data: bytes | Path) -> int:
    """The size of ``data`` after deflate at level 9, without any header."""
    with _opened(data) as source:
        return _deflated_stream_bytes(source)


def _deflated_stream_bytes(source: IO[bytes]) -> int:
    packer = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return sum(len(packer.compress(chunk)) for chunk in _chunks(source)) + len(packer.flush())


def _opened(data: bytes | Path) -> IO[bytes]:
    return io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk
