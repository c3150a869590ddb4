"""What makes a package one of CMake's: ``find_package(NAME CONFIG)`` finds the model and compiles the loader.

::

    NAME/cmake/NAMEConfig.cmake       the imported target NAME::model, and where the files for the device lie
    NAME/cmake/EdgeslimLoader.cmake   the library edgeslim::loader, and edgeslim::chat for a language model
    NAME/cmake/loader/…               their sources: the loader in C and the decoder, for any machine

``NAME_DIR`` or ``CMAKE_PREFIX_PATH`` names the unpacked folder. On the device none of this is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgeslim import __version__
from edgeslim.runtime import C_DIR, CODEC_C_DIR

__all__ = ["CMAKE_DIR", "cmake_extras", "find_sources", "loader_sources"]

CMAKE_DIR = Path(__file__).parent.parent / "cmake"
"""``EdgeslimConfig.cmake``, which ``edgeslim cmake-dir`` tells a project of."""
_COMPILED = ("edgeslim.c", "edgeslim_open.c", "esz_load.c", "esz.c", "esz_token.c")
_CHAT = ("edgeslim_chat.c", "edgeslim_decoder.c", "edgeslim_sample.c")


def cmake_extras(name: str, target: str, scratch: Path, *, chat: bool = False) -> tuple[tuple[str, Path], ...]:
    """The files below ``cmake/`` of the package ``name``; those that are written for it go to ``scratch``.

    ``chat`` says that it is a language model, which brings the generate loop along.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    config = scratch / f"{name}Config.cmake"
    text = (CMAKE_DIR / "package.cmake.in").read_text(encoding="utf-8")
    for word, value in (("@NAME@", name), ("@TARGET@", target), ("@VERSION@", __version__)):
        text = text.replace(word, value)
    config.write_text(text, encoding="utf-8")
    return (
        (f"cmake/{config.name}", config),
        ("cmake/EdgeslimLoader.cmake", CMAKE_DIR / "EdgeslimLoader.cmake"),
        *((f"cmake/loader/{path.name}", path) for path in loader_sources(chat=chat)),
    )


def loader_sources(*, chat: bool = False) -> tuple[Path, ...]:
    """The C files of the loader and those that they include, each name once; with the generate loop if ``chat``."""
    return find_sources((*_COMPILED, *_CHAT) if chat else _COMPILED)


def find_sources(compiled: Iterable[str]) -> tuple[Path, ...]:
    """The C files named and those that they include, each name once."""
    places = {path.name: path for folder in (C_DIR, CODEC_C_DIR) for path in folder.glob("*.[ch]")}
    found: dict[str, Path] = {}
    wanted = [name for name in compiled if name in places]
    while wanted:
        name = wanted.pop()
        if name in places and name not in found:  # others are the system's and the runtime's
            found[name] = places[name]
            wanted += re.findall(r'^\s*#\s*include "([\w.]+)"', places[name].read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(path for _, path in sorted(found.items()))
