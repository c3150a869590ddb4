"""Results of build steps on disk, found again by what went into them.

An entry is a folder of files named by its key: a SHA-256 over the step's name, its inputs' hashes, its settings and the
versions of the code that ran. Entries never change. They are written beside their place and renamed, so that two builds
at once share a cache without locks: whoever comes second throws its copy away. On the way out every hash is compared,
that of the record included; an entry that doesn't match is removed and counts as absent. What was used least lately
goes first when the cache grows past its limit. Nothing else that may lie in the folder is ever touched.

::

    ROOT/v1/KEY/entry.json      {"step": …, "facts": {…}, "files": {name: sha256}, "sha256": of KEY and all these}
    ROOT/v1/KEY/files/…
    ROOT/v1/training/KEY/…      checkpoints of a training that isn't done (edgeslim.training.checkpoint)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslim.folders import claimed_folder, remove_abandoned
from edgeslim.units import parse_bytes

__all__ = ["Cache", "Entry", "default_root", "hash_file", "hash_parts"]

DEFAULT_LIMIT_BYTES = 5 * 10**9
MAX_ENTRY_JSON_BYTES = 16 << 20
_FORMAT = "v1"
_TRAINING = "training"
_ABANDONED_SECONDS = 14 * 86400
_KEY = re.compile("[0-9a-f]{64}")
_NEW, _OLD = ".new-", ".old-"
_HIDDEN = re.compile(re.escape(_OLD) + _KEY.pattern + r"-\d+-\d+")


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

        ``None`` where ``$EDGESLIM_CACHE`` is ``off``, and where there is no home folder to keep one in.

        Raises:
            BadInputError: the variable is no size.
        """
        if os.environ.get("EDGESLIM_CACHE") == "off":
            return None
        limit = os.environ.get("EDGESLIM_CACHE_LIMIT")
        size = parse_bytes(limit, "EDGESLIM_CACHE_LIMIT") if limit else DEFAULT_LIMIT_BYTES
        try:
            return cls(default_root(), limit_bytes=size)
        except RuntimeError:  # a user without a home, as in many containers
            return None

    def read(self, key: str) -> dict[str, Any] | None:
        """The facts of entry ``key``, or ``None`` if there is no whole record of it."""
        place = self.root / key
        entry = _read_entry(place)
        if entry is None:
            _remove(place)
            return None
        _touch(place)
        facts: dict[str, Any] = entry["facts"]
        return facts

    def fetch(self, key: str, folder: Path) -> dict[str, Any] | None:
        """Puts the files of entry ``key`` into the new ``folder``.

        They are copies, not hard links to the cache: readers of ONNX refuse external data with more than one link, and
        a package that its user edits must not reach back. Equal files of one entry are links to each other.

        Returns the facts that were stored with them, or ``None`` if there is no whole entry.
        """
        place = self.root / key
        entry = _read_entry(place)
        if entry is None:
            _remove(place)
            return None
        try:
            folder.mkdir(parents=True)
            sound = _copy_files(place / "files", folder, tuple(entry["files"])) == entry["files"]
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):  # incomplete, or removed meanwhile
            sound = False
        except OSError:  # no room here, or no right to read there: the entry may be sound all the same
            shutil.rmtree(folder, ignore_errors=True)
            return None
        if not sound:
            shutil.rmtree(folder, ignore_errors=True)
            _remove(place)
            return None
        _touch(place)
        facts: dict[str, Any] = entry["facts"]
        return facts

    def store(
        self, key: str, step: str, folder: Path | None, facts: Mapping[str, Any], *, replace: bool = False
    ) -> None:
        """Keeps copies of the files below ``folder``, in place of an earlier entry only if ``replace`` is true.

        A cache that can't be written is no reason to stop a build: then nothing is kept.
        """
        with suppress(OSError):  # no rights, no room, or another build was first
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with claimed_folder(self.root, _NEW) as temporary:
                made = temporary / "entry"
                made.mkdir()
                paths = () if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
                names = tuple(path.relative_to(folder).as_posix() for path in paths if folder is not None)
                files = {} if folder is None else _copy_files(folder, made / "files", names)
                body = {"step": step, "facts": dict(facts), "files": files}
                text = json.dumps({**body, "sha256": _hash_entry(key, body)})
                (made / "entry.json").write_text(text, encoding="utf-8")
                if replace:
                    self.remove(key)
                made.rename(self.root / key)
            self.trim()

    def checkpoints(self, key: str) -> Path:
        """Where the training of step ``key`` keeps what a later build goes on from; it may not exist yet."""
        return self.root / _TRAINING / key

    def sweep(self) -> None:
        """Removes what killed builds left half written or half removed, and checkpoints that nobody came back for."""
        with suppress(OSError):
            remove_abandoned(self.root, _NEW)
            for place in (self.root / _TRAINING).glob("*"):
                if time.time() - place.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):
            for place in self.root.iterdir():
                if _HIDDEN.fullmatch(place.name):
                    shutil.rmtree(place, ignore_errors=True)

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
        """Removes all entries, and the folder if nothing else lies in it; returns how many there were."""
        count = len(self.entries())
        with suppress(OSError):
            self._sweep()
            for place in self._places():
                _remove(place)
            shutil.rmtree(self.root / _TRAINING, ignore_errors=True)
            self.root.rmdir()
        return count

    def _places(self) -> Iterator[Path]:
        """The folders that are named as an entry is, whatever is in them."""
        with suppress(OSError):
            yield from (place for place in self.root.iterdir() if _KEY.fullmatch(place.name))

    def _entries(self) -> Iterator[Entry]:
        for place in self._places():
            entry = _read_entry(place)
            if entry is None:
                continue
            try:
                found = [item.stat() for item in place.rglob("*") if item.is_file()]
                size = sum({item.st_ino: item.st_size for item in found}.values())
                yield Entry(key=place.name, step=str(entry["step"]), bytes=size, used=place.stat().st_mtime)
            except OSError:  # removed meanwhile
                continue

    def _sweep(self) -> None:
        """Removes what killed builds left half written or half removed, and what is no whole entry."""
        self.sweep()
        for place in self._places():  # an entry appears whole, so what isn't whole never will be
            if _read_entry(place) is None:
                _remove(place)


def _copy_files(source: Path, folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Copies files by name; the SHA-256 of each copy. Equal files become links to each other."""
    hashes: dict[str, str] = {}
    places: dict[str, Path] = {}
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        digest = hashes[name] = hash_file(target)
        if digest in places and target.stat().st_size:
            target.unlink()
            target.hardlink_to(places[digest])
        places.setdefault(digest, target)
    return hashes


def _hash_entry(key: str, body: Mapping[str, Any]) -> str:
    return hash_parts(key, {name: body.get(name) for name in ("step", "facts", "files")})


def _read_entry(place: Path) -> dict[str, Any] | None:
    """The parsed ``entry.json``, or ``None`` where it is missing or not what ``store`` wrote under this key."""
    path = place / "entry.json"
    try:
        if not path.is_file() or path.stat().st_size > MAX_ENTRY_JSON_BYTES:
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            isinstance(entry, dict)
            and isinstance(entry.get("step"), str)
            and isinstance(entry.get("facts"), dict)
            and isinstance(entry.get("files"), dict)
            and all(_is_inside(name) and isinstance(digest, str) for name, digest in entry["files"].items())
            and entry.get("sha256") == _hash_entry(place.name, entry)
        )
    except (OSError, ValueError, RecursionError):
        return None
    return entry if whole else None


def _is_inside(name: str) -> bool:
    path = Path(os.fsdecode(os.fsencode(name)))  # a ValueError where no file can have this name
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _touch(place: Path) -> None:
    with suppress(OSError):  # a cache that is only read serves as well
        os.utime(place)


def _remove(place: Path) -> None:
    """Moves an entry out of sight in one step before deleting it, so that nobody finds half of it."""
    hidden = place.with_name(f"{_OLD}{place.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        place.rename(hidden)
    except OSError:
        return
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink(missing_ok=True)
