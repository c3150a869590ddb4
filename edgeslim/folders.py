"""Temporary folders that a killed process doesn't leave behind for good, and moments that no signal may cut in two.

A folder is claimed by a lock on the folder itself (``flock``), which ends with its process, however that ends. Whoever
comes next removes the folders of the same prefix that nobody holds. There is no lock file, and so no moment at which
an abandoned folder looks like one in use. On a file system without locks nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["claimed_folder", "remove_abandoned", "uninterrupted"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SUFFIX = "[a-z0-9_]{8}"  # what mkdtemp appends


@contextmanager
def claimed_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent``, locked while the block runs and removed after it.

    Raises:
        OSError: ``parent`` can't be written.
    """
    folder: Path | None = None
    lock = -1

    def remove() -> None:
        nonlocal folder
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder = None
            os.close(lock)

    try:
        with uninterrupted():
            folder, lock = _claim(parent, prefix)
        yield folder
    finally:
        try:
            with uninterrupted():
                remove()
        except BaseException:  # a signal that came before all of them were held back
            with uninterrupted():
                remove()
            raise


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes the folders of ``claimed_folder`` in ``parent`` whose processes are gone."""
    ours = re.compile(re.escape(prefix) + _SUFFIX)
    for folder in parent.iterdir():
        if ours.fullmatch(folder.name) is None:
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone, or not ours
            continue
        with suppress(OSError):  # in use
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds signals that end a process back until the block has ended; only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        held.append(number)

    before: dict[int, Any] = {}
    try:
        for ending in _ENDING:
            before[ending] = signal.signal(ending, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in held[:1]:
            signal.raise_signal(late)


def _claim(parent: Path, prefix: str) -> tuple[Path, int]:
    """A folder and its locked descriptor; once more if somebody swept it away before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks, where nobody sweeps
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # nobody else makes a folder of this name
            return folder, lock
        os.close(lock)
