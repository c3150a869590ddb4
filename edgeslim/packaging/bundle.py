"""What every kind of package is made from: model, packed weights, manifest, tokenizer and licence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Bundle", "file_entry", "tokenizer_extras", "write_manifest"]

MANIFEST_SCHEMA = 1
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SLOW_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The files of a package. ``extras`` maps names inside the package's folder to files."""

    name: str
    model: Path
    packed: Path
    manifest: Path
    extras: tuple[tuple[str, Path], ...]


def file_entry(path: Path) -> dict[str, object]:
    """Size and SHA-256 of a file, as the manifest holds them."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def tokenizer_extras(folder: Path | None) -> tuple[tuple[str, Path], ...]:
    """The tokenizer's files under ``tokenizer/``; vocabulary files only where there is no ``tokenizer.json``."""
    if folder is None:
        return ()
    names: tuple[str, ...] = TOKENIZER_FILES
    if not (folder / "tokenizer.json").is_file():
        names = (*TOKENIZER_FILES, *SLOW_TOKENIZER_FILES)
    return tuple((f"tokenizer/{name}", folder / name) for name in names if (folder / name).is_file())


def write_manifest(path: Path, facts: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Writes ``manifest.json``: ``schema``, ``facts``, and size and hash of each of ``files``.

    Nothing of the machine or the time of the build goes in, so that the same inputs give the same bytes.
    """
    table = {name: file_entry(file) for name, file in sorted(files.items())}
    text = json.dumps({"schema": MANIFEST_SCHEMA, **facts, "files": table}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
