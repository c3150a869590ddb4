"""A reproducible ``.tar.gz`` of the package's files, for Linux boards and for anything without a package of its own."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgeslim.packaging.archive import check_name

if TYPE_CHECKING:
    from edgeslim.packaging.bundle import Bundle

__all__ = ["write_tarball"]


def write_tarball(bundle: Bundle, out: Path) -> Path:
    """Writes ``NAME/{model.onnx, weights.esz, manifest.json, …}`` into the new file ``out``; dates and owners are zero.

    Raises:
        BadInputError: an extra's name would leave the folder.
    """
    files = {
        "model.onnx": bundle.model,
        "weights.esz": bundle.packed,
        "manifest.json": bundle.manifest,
        **dict(bundle.extras),
    }
    with (
        out.open("xb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            check_name(name)
            info = tarfile.TarInfo(f"{bundle.name}/{name}")
            info.size, info.mode = files[name].stat().st_size, 0o644
            with files[name].open("rb") as stream:
                archive.addfile(info, stream)
    return out
