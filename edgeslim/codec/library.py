"""Finds and loads libesz, the C coder, as a plain shared library.

A wheel and an editable install both put it into the folder of the package ``edgeslim.codec``, under a plain name. The
environment variable ``EDGESLIM_LIBESZ`` names another file instead: a build with sanitizers, or one under test.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from edgeslim.errors import MissingToolError

__all__ = ["find_library", "load_library"]

ENVIRONMENT_VARIABLE = "EDGESLIM_LIBESZ"


def find_library() -> Path:
    """The path of libesz.

    Raises:
        MissingToolError: it is in none of the places where an install puts it.
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        path = Path(override)
        if path.is_file():
            return path
        raise MissingToolError(ENVIRONMENT_VARIABLE, f"no file {override}", expected="the path of a built libesz")
    folders = list(dict.fromkeys(_folders()))
    for folder in folders:
        for name in _names():
            if (folder / name).is_file():
                return folder / name
    raise MissingToolError(
        "edgeslim.codec",
        f"the coder's library {_names()[0]} is missing",
        expected="it in " + " or ".join(str(folder) for folder in folders),
        hint=f"install edgeslim from a wheel or with a C compiler, or set {ENVIRONMENT_VARIABLE}",
    )


def load_library() -> ctypes.CDLL:
    """The loaded library; one object for all callers of the same file."""
    return _load(str(find_library()))


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        hint = "was it built for this machine and Python?"
        raise MissingToolError(path, f"cannot be loaded: {error}", expected="a shared library", hint=hint) from error


def _names() -> tuple[str, ...]:
    if sys.platform == "win32":
        return ("libesz.dll", "esz.dll")
    if sys.platform == "darwin":
        return ("libesz.dylib", "libesz.so")
    return ("libesz.so",)


def _folders() -> Iterator[Path]:
    yield Path(__file__).parent
    package = importlib.import_module("edgeslim.codec")
    for entry in package.__path__:  # an editable install adds the folder of the built files
        yield Path(entry)
    for key in ("platlib", "purelib"):
        yield Path(sysconfig.get_path(key)) / "edgeslim" / "codec"
