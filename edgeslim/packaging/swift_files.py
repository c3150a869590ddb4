"""What makes a package one of Swift's: Xcode takes the unpacked folder in, with the model as resources.

::

    NAME/Package.swift              three targets, and the dependency on ONNX Runtime's Swift package
    NAME/README.md                  how to use it, and what was never compiled or run
    NAME/Sources/CEdgeslim/…        the decoder and the tokenizer in C, with their headers in include/
    NAME/Sources/Edgeslim/…         the loader in Swift
    NAME/Sources/MODULE/Model.swift the model, found among the resources

MODULE is the model's name as one word in capitals: all-minilm-l6-v2 becomes AllMinilmL6V2.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeslim import __version__
from edgeslim.packaging.cmake_files import find_sources
from edgeslim.runtime import SWIFT_DIR

__all__ = ["module_name", "swift_extras"]

_COMPILED = ("esz.c", "esz_load.c", "esz_token.c")
_PUBLIC = ("esz.h", "esz_format.h", "esz_load.h", "esz_token.h")
_RESOURCES = ("manifest.json", "model.onnx", "weights.esz")


def module_name(name: str) -> str:
    """The name of a package's Swift module: a capital letter, then letters and digits."""
    words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))
    return words if words[:1].isalpha() else f"Model{words}"


def swift_extras(name: str, *, has_tokenizer: bool, scratch: Path) -> tuple[tuple[str, Path], ...]:
    """The files of the package ``name`` besides the model's; those that are written for it go to ``scratch``."""
    scratch.mkdir(parents=True, exist_ok=True)
    module = module_name(name)
    resources = [*_RESOURCES, *(["tokenizer"] if has_tokenizer else [])]
    lines = ",\n".join(f'                .copy("{resource}")' for resource in resources)
    words = {"@NAME@": name, "@MODULE@": module, "@VERSION@": __version__, "@RESOURCES@": lines}
    extras = []
    for template, place in (
        ("Package.swift.in", "Package.swift"),
        ("README.md.in", "README.md"),
        ("Model.swift.in", f"Sources/{module}/Model.swift"),
    ):
        text = (SWIFT_DIR / template).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        written = scratch / template.removesuffix(".in")
        written.write_text(text, encoding="utf-8")
        extras.append((place, written))
    extras += [(f"Sources/Edgeslim/{path.name}", path) for path in sorted(SWIFT_DIR.glob("*.swift"))]
    for path in find_sources(_COMPILED):
        folder = "Sources/CEdgeslim/include" if path.name in _PUBLIC else "Sources/CEdgeslim"
        extras.append((f"{folder}/{path.name}", path))
    return tuple(extras)
