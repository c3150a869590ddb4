"""Where a build works, and how its result gets into place.

Everything is made in a scratch folder beside the output, on the same file system, so that finishing is a rename. The
scratch folder holds a lock for as long as its build lives; a build that starts removes the folders of those that were
killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeslim.errors import BadInputError

__all__ = ["publish", "scratch_folder"]

_PREFIX = ".edgeslim-"
_LOCK = "lock"


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``; it is removed whatever happens.

    Folders above the output that were made for it go again if they end up empty.

    Raises:
        BadInputError: ``out`` is a file, or nothing can be written there, or the disk is full.
    """
    parent = out.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        work = _make_scratch(out, parent)
        try:
            with (work / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield work
        except OSError as error:
            raise BadInputError(
                str(error.filename or out), error.strerror or str(error), expected="room and rights to write there"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        for folder in made:
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def _make_scratch(out: Path, parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise BadInputError(str(out), "a file", expected="a folder for the build's output, new or old")
        if not os.access(out if out.exists() else parent, os.W_OK):
            raise PermissionError(13, "not writable")
        _remove_abandoned(parent)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise BadInputError(
            str(out), f"can't write here: {error.strerror or error}", expected="a folder that can be written"
        ) from error


def publish(ready: Path, out: Path) -> None:
    """Renames every file below ``ready`` into ``out``; other files there stay.

    The package goes first and the report last of the top folder, then folders. Each file is whole at every moment: it
    is either the old one or the new one.
    """
    files = [path for path in ready.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (len(path.parts), path.suffix == ".json", path))
    for path in files:
        place = out / path.relative_to(ready)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def _remove_abandoned(parent: Path) -> None:
    """Removes the scratch folders whose builds are gone: nobody holds their lock."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or not ours
            continue
