"""What the tests of whole builds share: a finished build, and what lies in a folder."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeslim.checks import latency
from edgeslim.core import Finding, Report

BOARD = """\
extends = "android-arm64"
name = "board"
summary = "a Linux board"
[package]
kind = "{kind}"
"""
PROJECT = """\
model = "models/mlp.onnx"
name = "My Net"
target = "board.toml"
out = "made"

[data]
calibration = "a.npz"
evaluation = "b.npz"

[budget]
max_drop = 0.05
max_size = "1MB"
max_peak_memory = "1GB"
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build: its report, the folder that it was started in, and its output."""

    report: Report
    folder: Path
    out: Path

    @property
    def package(self) -> Path:
        return Path(self.report.artifact.path)

    def finding(self, metric: str) -> Finding:
        (found,) = (item for item in self.report.findings if item.metric == metric)
        return found

    def contents(self) -> dict[str, bytes]:
        """The package's own files, without the folders that its kind puts around them."""
        if self.package.suffix == ".aar":
            prefix = f"assets/edgeslim/{self.package.stem}/"
            with zipfile.ZipFile(self.package) as archive:
                return {name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if prefix in name}
        with tarfile.open(self.package) as archive:
            return {info.name.partition("/")[2]: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]

    def manifest(self) -> dict[str, Any]:
        return json.loads(self.contents()["manifest.json"])


Build = Callable[..., Built]


def listing(folder: Path) -> dict[str, bytes | None]:
    """All below ``folder``: files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Fewer runs for figures that these tests don't look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        yield patch
