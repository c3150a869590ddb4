"""Where a build works, and how its result gets into place.

Everything is made in a scratch folder beside the output, on the same file system, so that finishing is a rename. Where
the folder above the output can't serve (another file system, as when the output is a mounted volume, or no right to
write there), the scratch folder lies inside the output. It is locked for as long as its build lives, and a build that
starts removes those of builds that were killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeslim.errors import BadInputError
from edgeslim.folders import claimed_folder, remove_abandoned, uninterrupted

__all__ = ["publish", "scratch_folder", "sweep"]

_REPORTS = {".html": 1, ".json": 2}
"""Suffixes of the files that go last."""
_PREFIX = ".edgeslim-build-"


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` (what it points to, if it is a link); it is removed whatever happens.

    Folders above the output that were made for it go again if they end up empty.

    Raises:
        BadInputError: ``out`` is a file, or nothing can be written there, or the disk is full.
    """
    out = out.absolute()
    parent = out.resolve().parent
    made = [folder for folder in (parent, *parent.parents) if not _exists(folder)]
    try:
        home = _home(out, parent)
        with claimed_folder(home, _PREFIX) as work:
            try:
                yield work
            except OSError as error:
                raise _describe(error, out, work) from error
    except OSError as error:
        raise BadInputError(
            str(out), f"can't write here: {error.strerror or error}", expected="a folder that can be written"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def sweep(out: Path) -> None:
    """Removes the scratch folders of killed builds into ``out``, as far as they can be."""
    out = out.absolute().resolve()
    for home in (out.parent, out):
        with suppress(OSError):
            remove_abandoned(home, _PREFIX)


def publish(ready: Path, out: Path) -> None:
    """Renames every file below ``ready`` into ``out``; other files there stay.

    The package goes first and the report last of the top folder, then folders. Each file is whole at every moment: it
    is either the old one or the new one. Only a kill can stop this halfway, no Ctrl-C.

    Raises:
        OSError: a folder can't be made; then nothing was renamed.
    """
    files = [path for path in ready.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (len(path.parts), _REPORTS.get(path.suffix, 0), path))
    with uninterrupted():
        for path in files:
            (out / path.relative_to(ready)).parent.mkdir(parents=True, exist_ok=True)
        for path in files:
            path.replace(out / path.relative_to(ready))


def _home(out: Path, parent: Path) -> Path:
    """The folder for the scratch folder; those of killed builds are removed from it."""
    parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.is_dir():
        raise BadInputError(str(out), "a file", expected="a folder for the build's output, new or old")
    if out.exists() and not os.access(out, os.W_OK):
        raise PermissionError(13, "not writable")
    beside = os.access(parent, os.W_OK) and (not out.exists() or out.stat().st_dev == parent.stat().st_dev)
    if not beside and not out.exists():
        raise PermissionError(13, "not writable")
    home = parent if beside else out
    remove_abandoned(home, _PREFIX)
    return home


def _describe(error: OSError, out: Path, work: Path) -> BadInputError:
    """What went wrong, without the name of a folder that is gone by the time that anybody reads it."""
    reason = error.strerror or str(error)
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if path is None or path.is_relative_to(work):
        what = f"{reason} (while writing {path.name})" if path is not None else reason
        hint = "what lay in the output is untouched"
        return BadInputError(str(out), what, expected="room and rights to write there", hint=hint)
    return BadInputError(str(path), reason, expected="room and rights to write there")


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # no right to look
        return True
