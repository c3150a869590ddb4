"""Results of build steps on disk, found again by what went into them.

An entry is a folder of files named by its key: a SHA-256 over the step's name, its inputs' hashes, its settings and the
versions of the code that ran. Entries never change. They are written beside their place and renamed, so that two builds
at once share a cache without locks: whoever comes second throws its copy away. On the way out every file's hash is
compared; an entry that doesn't match is removed and counts as absent. What was used least lately goes first when the
cache grows past its limit.

::

    ROOT/v1/KEY/entry.json      {"step": …, "facts": {…}, "files": {name: sha256}}
    ROOT/v1/KEY/files/…
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslim.units import parse_bytes

__all__ = ["Cache", "Entry", "default_root", "hash_file", "hash_parts"]

DEFAULT_LIMIT_BYTES = 5 * 10**9
MAX_ENTRY_JSON_BYTES = 16 << 20
STALE_SECONDS = 24 * 3600.0
_FORMAT = "v1"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One result as `edgeslim cache` lists it; ``used`` is in seconds since 1970."""

    key: str
    step: str
    bytes: int
    used: float


def default_root() -> Path:
    """``$EDGESLIM_CACHE``, or ``edgeslim`` in the user's cache folder."""
    named = os.environ.get("EDGESLIM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeslim"


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_parts(*parts: object) -> str:
    """A key from JSON values; the order of a table's keys doesn't matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Cache:
    """A folder of entries, at most ``limit_bytes`` of files after each ``store``."""

    def __init__(self, root: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.root = root / _FORMAT
        self.limit_bytes = limit_bytes

    @classmethod
    def default(cls) -> Cache | None:
        """The user's cache, with the limit that ``$EDGESLIM_CACHE_LIMIT`` (a size such as ``2GB``) may set.

        ``None`` where ``$EDGESLIM_CACHE`` is ``off``.

        Raises:
            BadInputError: the variable is no size.
        """
        if os.environ.get("EDGESLIM_CACHE") == "off":
            return None
        limit = os.environ.get("EDGESLIM_CACHE_LIMIT")
        size = parse_bytes(limit, "EDGESLIM_CACHE_LIMIT") if limit else DEFAULT_LIMIT_BYTES
        return cls(default_root(), limit_bytes=size)

    def fetch(self, key: str, folder: Path) -> dict[str, Any] | None:
        """Puts the files of entry ``key`` into the new ``folder``.

        They are copies, not hard links: readers of ONNX refuse external data with more than one link, and a package
        that its user edits must not reach back into the cache.

        Returns the facts that were stored with them, or ``None`` if there is no whole entry.
        """
        place = self.root / key
        entry = _read_entry(place)
        if entry is None:
            if place.exists():
                _remove(place)
            return None
        try:
            for name in entry["files"]:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place / "files" / name, target)
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(place)
            sound = all(hash_file(folder / name) == digest for name, digest in entry["files"].items())
        except OSError:  # removed by another build meanwhile
            sound = False
        if not sound:
            shutil.rmtree(folder, ignore_errors=True)
            _remove(place)
            return None
        facts: dict[str, Any] = entry["facts"]
        return facts

    def store(self, key: str, step: str, folder: Path, facts: Mapping[str, Any]) -> None:
        """Keeps copies of the files below ``folder``.

        A cache that can't be written is no reason to stop a build: then nothing is kept.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        except OSError:
            return
        try:
            files = {}
            for path in sorted(item for item in folder.rglob("*") if item.is_file()):
                name = path.relative_to(folder).as_posix()
                target = temporary / "files" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                files[name] = hash_file(target)
            text = json.dumps({"step": step, "facts": dict(facts), "files": files})
            (temporary / "entry.json").write_text(text, encoding="utf-8")
            temporary.rename(self.root / key)
        except OSError:  # no room, or another build was first
            pass
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.trim()

    def remove(self, key: str) -> None:
        """Removes an entry, if it is there."""
        _remove(self.root / key)

    def entries(self) -> tuple[Entry, ...]:
        """All whole entries, the least lately used first."""
        return tuple(sorted(self._entries(), key=lambda entry: entry.used))

    def trim(self) -> int:
        """Removes entries, least lately used first, until the limit holds; returns how many."""
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) - self.limit_bytes
        removed = 0
        for entry in entries:
            if excess <= 0:
                break
            _remove(self.root / entry.key)
            excess -= entry.bytes
            removed += 1
        return removed

    def clear(self) -> int:
        """Removes everything; returns how many entries there were."""
        count = len(self.entries())
        shutil.rmtree(self.root, ignore_errors=True)
        return count

    def _entries(self) -> Iterator[Entry]:
        if not self.root.is_dir():
            return
        for place in self.root.iterdir():
            entry = None if place.name.startswith(".") else _read_entry(place)
            if entry is None:
                continue
            try:
                size = sum(item.stat().st_size for item in place.rglob("*") if item.is_file())
                yield Entry(key=place.name, step=str(entry["step"]), bytes=size, used=place.stat().st_mtime)
            except OSError:  # removed meanwhile
                continue

    def _sweep(self) -> None:
        """Removes what a killed build left half written a day ago or earlier."""
        for place in (*self.root.glob(".new-*"), *self.root.glob(".old-*")):
            try:
                if time.time() - place.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)
            except OSError:
                continue


def _read_entry(place: Path) -> dict[str, Any] | None:
    """The parsed ``entry.json``, or ``None`` where it is missing or not what ``store`` writes."""
    path = place / "entry.json"
    try:
        if path.stat().st_size > MAX_ENTRY_JSON_BYTES:
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = (
        isinstance(entry, dict)
        and isinstance(entry.get("step"), str)
        and isinstance(entry.get("facts"), dict)
        and isinstance(entry.get("files"), dict)
        and all(_is_inside(name) and isinstance(digest, str) for name, digest in entry["files"].items())
    )
    return entry if whole else None


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _remove(place: Path) -> None:
    """Moves an entry out of sight in one step before deleting it, so that nobody finds half of it."""
    hidden = place.with_name(f".old-{place.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        place.rename(hidden)
    except OSError:
        return
    shutil.rmtree(hidden, ignore_errors=True)
