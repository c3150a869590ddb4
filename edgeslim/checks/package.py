"""Whether a package holds what its manifest promises: its files, the weights that it decodes to, its signature."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeslim import codec
from edgeslim.core import Finding
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME
from edgeslim.packaging.bundle import file_entry
from edgeslim.packaging.manifest import Manifest
from edgeslim.packaging.unpack import Package

__all__ = ["check_files", "check_signature", "check_weights"]

MAX_NAMED = 4


def check_files(package: Package) -> Iterator[Finding]:
    """Finding ``wrong_files``: each against size and SHA-256 of the manifest, nothing missing and nothing more."""
    listed = {name: entry for name, entry in package.manifest.files.items() if name != WEIGHTS_NAME}
    wrong = [f"{name} is missing" for name in sorted(set(listed) - set(package.names))]
    wrong += [f"{name} isn't in the manifest" for name in sorted(set(package.names) - set(listed) - {"manifest.json"})]
    for name in sorted(set(listed) & set(package.names)):
        found, entry = file_entry(package.folder / name), listed[name]
        if found["bytes"] != entry.bytes:
            wrong.append(f"{name} has {found['bytes']:,} bytes instead of {entry.bytes:,}")
        elif found["sha256"] != entry.sha256:
            wrong.append(f"the SHA-256 of {name} is not {entry.sha256}")
    note = _few(wrong) or f"{len(listed)} files as the manifest has them"
    yield Finding.at_most("files", "wrong_files", len(wrong), "files", 0, package.path.name, note)


def check_weights(package: Package) -> Iterator[Finding]:
    """Finding ``differing_hashes``: decodes ``weights.esz`` beside the model, into what the manifest promises.

    Raises:
        BadInputError: the disk has no room for it.
    """
    promised = package.manifest.files[WEIGHTS_NAME]
    packed, weights = package.folder / "weights.esz", package.folder / WEIGHTS_NAME
    where = f"{packed.name} decoded, beside the manifest"
    free = shutil.disk_usage(package.folder).free
    if promised.bytes > free:
        raise BadInputError(
            str(package.folder), f"{free:,} bytes are free", expected=f"room for {promised.bytes:,} bytes of weights"
        )
    note = ""
    try:
        decoded = codec.read_index(packed).decoded_bytes
        if decoded == promised.bytes:
            codec.decode_file(packed, weights)
        else:
            note = f"it holds {decoded:,} bytes instead of {promised.bytes:,}"
    except BadInputError as error:
        note = f"it can't be decoded: {error.got}"
    right = not note and file_entry(weights) == {"bytes": promised.bytes, "sha256": promised.sha256}
    note = note or f"SHA-256 {'' if right else 'is not '}{promised.sha256}"
    yield Finding.at_most("lossless", "differing_hashes", 0 if right else 1, "hashes", 0, where, note)


def check_signature(found: Mapping[str, Sequence[Any]], manifest: Manifest) -> Finding:
    """The model's inputs and outputs beside those of the manifest, name, type and shape."""
    wrong = []
    for side in ("inputs", "outputs"):
        promised = manifest.signature.get(side)
        promised = promised if isinstance(promised, list) else []
        if len(promised) != len(found[side]):
            wrong.append(f"{len(found[side])} {side} instead of {len(promised)}")
        wrong += [
            f"{item['name']} is {item['type']} {item['shape']}, the manifest has {other}"
            for item, other in zip(found[side], promised, strict=False)
            if item != other
        ]
    note = _few(wrong)
    return Finding.at_most("signature", "wrong_tensors", len(wrong), "tensors", 0, MODEL_NAME, note)


def _few(lines: Sequence[str]) -> str:
    more = len(lines) - MAX_NAMED
    return "; ".join(lines[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
