"""``manifest.json`` read back into types. Keys that this edgeslim doesn't know are left alone, as the loaders do."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.packaging.archive import check_name
from edgeslim.packaging.bundle import MANIFEST_SCHEMA
from edgeslim.target import Loading

__all__ = ["FileEntry", "Manifest", "read_manifest"]

MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 64 << 30
NEEDED = ("model.onnx", "weights.bin", "weights.esz")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest promises of a file."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.bytes <= MAX_FILE_BYTES:
            raise ValueError(f"bytes = {self.bytes}, expected 0 to {MAX_FILE_BYTES:,}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 = {self.sha256[:80]!r}, expected 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class RuntimeEntry:
    """The ONNX Runtime that the package was built for."""

    version: str
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    opset_max: int | None = None
    loading: Loading = "lowest"


@dataclass(frozen=True, kw_only=True)
class MachineEntry:
    """The hardware that the package was built for."""

    isa: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """Where the tokenizer lies in the package, at how many tokens texts are cut, and whether padded to as many."""

    folder: str
    max_length: int = 128
    pad: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length = {self.max_length}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class CalibrationEntry:
    """How calibration samples were split off a file, and the hash of their inputs."""

    sha256: str
    samples: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The keys of ``manifest.json`` that edgeslim itself reads again."""

    schema: int
    name: str
    target: str
    task: Mapping[str, Any]
    signature: Mapping[str, Any]
    runtime: RuntimeEntry
    files: Mapping[str, FileEntry]
    tokenizer: TokenizerEntry | None = None
    machine: MachineEntry | None = None
    calibration: CalibrationEntry | None = None
    edgeslim: str = ""


_INNER: Mapping[str, type] = {
    "runtime": RuntimeEntry,
    "tokenizer": TokenizerEntry,
    "machine": MachineEntry,
    "calibration": CalibrationEntry,
}


def read_manifest(path: Path, where: str) -> Manifest:
    """Reads and checks a manifest; ``where`` names it in errors.

    Raises:
        BadInputError: it is missing, too large, no JSON, of another schema, or lacks what every package has.
    """
    table = _read_object(path, where)
    schema = table.get("schema")
    if type(schema) is not int or schema != MANIFEST_SCHEMA:
        raise BadInputError(
            where, f"schema {schema!r}", expected=f"schema {MANIFEST_SCHEMA}", hint="a newer edgeslim may read it"
        )
    known = _known(Manifest, table)
    for key, kind in _INNER.items():
        if isinstance(known.get(key), dict):
            known[key] = _known(kind, known[key])
    manifest = parse_fields(Manifest, known, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", manifest.name):
        raise BadInputError(where, f"name = {manifest.name[:200]!r}", expected="letters, digits, dots and dashes")
    for name in (*manifest.files, *([manifest.tokenizer.folder] if manifest.tokenizer else ())):
        try:
            check_name(name)
        except BadInputError as error:
            raise BadInputError(where, f"a file named {name[:200]!r}", expected=error.expected) from error
    missing = [name for name in NEEDED if name not in manifest.files]
    if missing:
        raise BadInputError(
            f"{where}: files", "no " + ", ".join(missing), expected="size and SHA-256 of " + ", ".join(NEEDED)
        )
    return manifest


def _read_object(path: Path, where: str) -> dict[str, Any]:
    expected = "a JSON object as edgeslim writes it"
    try:
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise BadInputError(where, f"{size:,} bytes", expected=f"at most {MAX_MANIFEST_BYTES:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(where, error.strerror or str(error), expected=expected) from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(where, f"not valid JSON: {error}", expected=expected) from error
    if not isinstance(value, dict):
        raise BadInputError(where, f"a JSON {type(value).__name__}", expected=expected)
    return value


def _known(kind: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """``table`` with the keys of the dataclass ``kind`` alone."""
    names = {item.name for item in dataclasses.fields(cast(Any, kind))}
    return {key: value for key, value in table.items() if key in names}
