"""Whether the packed weights decode to exactly the bytes that the model was measured with."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeslim.codec import decode_file
from edgeslim.core import Finding
from edgeslim.errors import BadInputError

__all__ = ["check_lossless"]

CHUNK_BYTES = 1 << 20


def check_lossless(packed: Path, weights: Path, expected_sha256: str, work_dir: Path) -> Iterator[Finding]:
    """Findings ``differing_bytes`` and ``differing_hashes`` of ``packed`` decoded beside ``weights``.

    ``expected_sha256`` (hexadecimal) is what the manifest promises: the decoded file and ``weights`` are held against
    it. A container that can't be decoded differs in every byte. What is decoded goes below ``work_dir`` and away again.
    """
    where = f"{packed.name} decoded, beside {weights.name}"
    with tempfile.TemporaryDirectory(prefix="lossless-", dir=work_dir) as folder:
        decoded = Path(folder) / weights.name
        note = ""
        try:
            decode_file(packed, decoded)
        except BadInputError as error:
            note = f"it can't be decoded: {error.got}"
            decoded.unlink(missing_ok=True)
            decoded.touch()
        differing, first = _count_differences(decoded, weights)
        hashes = {"the decoded file": _sha256(decoded), weights.name: _sha256(weights)}
    if first is not None and not note:
        note = f"the first at byte {first:,}"
    yield Finding.at_most("lossless", "differing_bytes", differing, "bytes", 0, where, note)
    wrong = [name for name, digest in hashes.items() if digest != expected_sha256.lower()]
    note = f"SHA-256 of {' and '.join(wrong)} is not {expected_sha256}" if wrong else f"SHA-256 {expected_sha256}"
    yield Finding.at_most("lossless", "differing_hashes", len(wrong), "hashes", 0, where, note)


def _count_differences(left: Path, right: Path) -> tuple[int, int | None]:
    """How many bytes differ (those that only one file has, too), and the offset of the first."""
    differing, first, offset = 0, None, 0
    with left.open("rb") as a, right.open("rb") as b:
        while True:
            x, y = a.read(CHUNK_BYTES), b.read(CHUNK_BYTES)
            if not x and not y:
                return differing, first
            size = min(len(x), len(y))
            unequal = np.frombuffer(x[:size], np.uint8) != np.frombuffer(y[:size], np.uint8)
            count = int(np.count_nonzero(unequal)) + max(len(x), len(y)) - size
            if count and first is None:
                first = offset + (int(np.argmax(unequal)) if unequal.any() else size)
            differing += count
            offset += max(len(x), len(y))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
