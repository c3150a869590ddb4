"""Small models built once for all of these tests, a project of one's own, and a folder where builds fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import BOARD, PROJECT, Build, Built, listing, quick

import edgeslim
from edgeslim import export
from edgeslim.core import Report


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds in a folder of its own. Afterwards nothing lies there but the output."""

    def run(model: str | Path, *, target: str | Path = "android-arm64", engine: str = "", **options: Any) -> Built:
        folder = tmp_path_factory.mktemp("build")
        out = folder / "made"
        with quick() as patch:
            patch.chdir(folder)
            if engine == "torch":
                patch.setattr(export, "_optimum_knows", lambda module, task: False)
            options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
            report = edgeslim.build(str(model), target=str(target), out="made", **options)
        assert [path.name for path in folder.iterdir()] == (["made"] if not report.failed() else [])
        return Built(report=report, folder=folder, out=out) if report.failed() else _placed(report, folder, out)

    return run


def _placed(report: Report, folder: Path, out: Path) -> Built:
    path = folder / report.artifact.path
    moved = Report(**{**vars(report), "artifact": type(report.artifact)(path=str(path), bytes=report.artifact.bytes)})
    assert path.stat().st_size == report.artifact.bytes
    return Built(report=moved, folder=folder, out=out)


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Target files of one's own: the board takes a ``tar`` or an ``aar``."""
    folder = tmp_path_factory.mktemp("boards")
    for kind in ("tar", "aar"):
        (folder / f"{kind}.toml").write_text(BOARD.format(kind=kind), encoding="utf-8")
    return {kind: folder / f"{kind}.toml" for kind in ("tar", "aar")}


@pytest.fixture(scope="session")
def encoder(build: Build, tiny_bert: Path, text_files: Any) -> Built:
    return build(tiny_bert, data=text_files.txt, max_latency="40ms", max_size="1MB")


@pytest.fixture(scope="session")
def encoder_by_torch(build: Build, tiny_bert: Path, text_files: Any, boards: dict[str, Path]) -> Built:
    return build(tiny_bert, data=text_files.txt, target=boards["tar"], engine="torch", name="By Torch")


@pytest.fixture(scope="session")
def classifier(build: Build, tiny_classifier: Path, text_files: Any) -> Built:
    return build(tiny_classifier, data=text_files.csv)


@pytest.fixture(scope="session")
def mlp(build: Build, mlp_onnx: Path, mlp_samples: Path) -> Built:
    return build(mlp_onnx, data=mlp_samples)


@pytest.fixture(params=["encoder", "encoder_by_torch", "classifier", "mlp"])
def any_build(request: pytest.FixtureRequest) -> Built:
    return request.getfixturevalue(request.param)


@pytest.fixture
def project(tmp_path: Path, mlp_onnx: Path, boards: dict[str, Path]) -> Path:
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(mlp_onnx, folder / "models")
    shutil.copy(boards["tar"], folder / "board.toml")
    values = np.random.default_rng(9).normal(0, 1, (40, 16)).astype(np.float32)
    np.savez(folder / "a.npz", x=values[:15])
    np.savez(folder / "b.npz", x=values[15:])
    (folder / "edgeslim.toml").write_text(PROJECT, encoding="utf-8")
    return folder


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; after the build that must fail in it, it is as empty as before."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert listing(folder) == {}, "a failed build left something behind"
