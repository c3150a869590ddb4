from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging.bundle import Bundle
from edgeslim.packaging.tarball import write_tarball


def make_bundle(folder: Path, *extras: str) -> Bundle:
    folder.mkdir()
    files = {name: folder / name for name in ("model", "packed", "manifest", "extra")}
    for name, path in files.items():
        path.write_bytes(name.encode() * 1000)
    return Bundle(
        name="tiny-v2",
        model=files["model"],
        packed=files["packed"],
        manifest=files["manifest"],
        extras=tuple((name, files["extra"]) for name in extras),
    )


def test_contents(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "in", "tokenizer/tokenizer.json", "LICENSE")
    out = write_tarball(bundle, tmp_path / "x.tar.gz")
    assert out == tmp_path / "x.tar.gz"
    with tarfile.open(out) as archive:
        contents = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
        infos = archive.getmembers()
    assert contents == {
        "tiny-v2/LICENSE": b"extra" * 1000,
        "tiny-v2/manifest.json": b"manifest" * 1000,
        "tiny-v2/model.onnx": b"model" * 1000,
        "tiny-v2/tokenizer/tokenizer.json": b"extra" * 1000,
        "tiny-v2/weights.esz": b"packed" * 1000,
    }
    assert list(contents) == sorted(contents)
    for info in infos:
        assert info.isreg()
        assert (info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname) == (0o644, 0, 0, 0, "", "")


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_tarball(make_bundle(tmp_path / "1", "b", "a"), tmp_path / "first.tar.gz")
    bundle = make_bundle(tmp_path / "2", "a", "b")
    os.utime(bundle.model, (5, 5))
    bundle.packed.chmod(0o600)
    second = write_tarball(bundle, tmp_path / "second.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    assert b"tar" not in first.read_bytes()[:20], "the gzip header names no file"
    assert gzip.decompress(first.read_bytes())


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "a\\..\\evil"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str, refuses: Any) -> None:
    with refuses(BadInputError, where="", got=""):
        write_tarball(make_bundle(tmp_path / "in", name), tmp_path / "x.tar.gz")


def test_an_old_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_tarball(make_bundle(tmp_path / "in"), tmp_path / "x.tar.gz")
    assert (tmp_path / "x.tar.gz").read_bytes() == b"old"
