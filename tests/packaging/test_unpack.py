"""Packages read back: those that edgeslim writes, and everything that somebody else may have put into one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging import unpack
from edgeslim.packaging.android import AndroidSettings, write_aar
from edgeslim.packaging.bundle import Bundle, write_manifest
from edgeslim.packaging.tarball import write_tarball
from edgeslim.packaging.unpack import Package, unpack_package

FACTS: dict[str, Any] = {
    "name": "tiny",
    "target": "android-arm64",
    "edgeslim": "0.1.0",
    "source": {"model": "tiny", "licence": None},
    "task": {"task": "text-classification", "labels": ["bad", "good"]},
    "signature": {"inputs": [], "outputs": []},
    "runtime": {"name": "onnxruntime", "version": "1.29.0", "providers": ["CPUExecutionProvider"], "threads": 2},
    "machine": {"isa": "arm64-v8a", "features": ["neon"], "colour": "red"},
    "min_sdk": 24,
    "tokenizer": {"folder": "tokenizer", "max_length": 64},
    "from a newer one": True,
}
CONTENTS = {
    "model.onnx": b"a graph" * 40,
    "weights.esz": b"coded" * 99,
    "tokenizer/tokenizer.json": b"{}",
    "LICENSE": b"do as you like\n",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    files = {}
    for name, content in {**CONTENTS, "weights.bin": b"decoded" * 120}.items():
        files[name] = folder / name.replace("/", "-")
        files[name].write_bytes(content)
    write_manifest(folder / "manifest.json", FACTS, files)
    extras = tuple((name, files[name]) for name in ("tokenizer/tokenizer.json", "LICENSE"))
    return Bundle(
        name="tiny",
        model=files["model.onnx"],
        packed=files["weights.esz"],
        manifest=folder / "manifest.json",
        extras=extras,
    )


@pytest.fixture(scope="module")
def aar(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aar(bundle, AndroidSettings(min_sdk=24), tmp_path_factory.mktemp("aar") / "tiny.aar")


@pytest.fixture(scope="module")
def tarball(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tarball(bundle, tmp_path_factory.mktemp("tar") / "tiny.tar.gz")


def manifest_bytes(**changes: Any) -> bytes:
    entry = {"bytes": 1, "sha256": "0" * 64}
    files = dict.fromkeys(("model.onnx", "weights.esz", "weights.bin"), entry)
    table = {"schema": 1, **FACTS, "files": files, **changes}
    return json.dumps({key: value for key, value in table.items() if value is not ...}).encode()


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[Path], Package]:
    def run(path: Path) -> Package:
        (tmp_path / "to").mkdir()
        return unpack_package(path, tmp_path / "to")

    return run


@pytest.mark.parametrize("kind", ["aar", "tarball"])
def test_what_edgeslim_writes(kind: str, request: pytest.FixtureRequest, unpacked: Any) -> None:
    path: Path = request.getfixturevalue(kind)
    package = unpacked(path)
    assert package.kind == kind[:3]
    assert package.path == path
    assert package.names == ("LICENSE", "manifest.json", "model.onnx", "tokenizer/tokenizer.json", "weights.esz")
    assert {name: (package.folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    manifest = package.manifest
    assert (manifest.name, manifest.target, manifest.runtime.threads) == ("tiny", "android-arm64", 2)
    assert manifest.tokenizer is not None
    assert (manifest.tokenizer.folder, manifest.tokenizer.max_length) == ("tokenizer", 64)
    assert manifest.machine is not None
    assert manifest.machine.isa == "arm64-v8a"
    assert manifest.calibration is None
    assert manifest.files["model.onnx"].sha256 == hashlib.sha256(CONTENTS["model.onnx"]).hexdigest()


def test_folders_among_the_entries_are_fine(tmp_path: Path, unpacked: Any) -> None:
    with zipfile.ZipFile(tmp_path / "x.aar", "w") as archive:
        archive.writestr("AndroidManifest.xml", b"<x/>")
        archive.mkdir("assets")
        archive.mkdir("assets/edgeslim")
        archive.writestr("assets/edgeslim/tiny/manifest.json", manifest_bytes())
    assert unpacked(tmp_path / "x.aar").names == ("manifest.json",)


def test_a_repacked_tarball_is_fine(tarball: Path, tmp_path: Path, unpacked: Any) -> None:
    with tarfile.open(tarball) as archive:
        archive.extractall(tmp_path / "by-hand", filter="data")
    with tarfile.open(tmp_path / "again.tgz", "w:gz") as archive:
        archive.add(tmp_path / "by-hand" / "tiny", "tiny")
    assert "weights.esz" in unpacked(tmp_path / "again.tgz").names


# Zip files that nobody should unpack


def zip_of(path: Path, *entries: tuple[Any, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("AndroidManifest.xml", b"<x/>")  # so that it begins as an AAR does
        for name, content in entries:
            archive.writestr(name, content)


def link_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


INNER = "assets/edgeslim/tiny/"
GOOD = (INNER + "manifest.json", manifest_bytes())
ZIPS: dict[str, tuple[list[tuple[Any, bytes]], str]] = {
    "climbs out": ([GOOD, ("../evil", b"x")], "an entry named '../evil'"),
    "climbs out inside": ([GOOD, (INNER + "../../../../evil", b"x")], "an entry named 'assets/edgeslim/tiny/../"),
    "absolute": ([GOOD, ("/etc/evil", b"x")], "an entry named '/etc/evil'"),
    "drive letter": ([GOOD, ("c:evil", b"x")], "an entry named 'c:evil'"),
    "backslash": ([GOOD, ("a\\..\\evil", b"x")], "an entry named"),
    "control character": ([GOOD, ("a\nb", b"x")], "an entry named"),
    "case twin": ([GOOD, (INNER + "LICENSE", b"x"), (INNER + "license", b"y")], "two entries for"),
    "file as folder": ([GOOD, ("a", b"x"), ("a/b", b"y")], "can't be unpacked"),
    "link": ([GOOD, (link_info(INNER + "model.onnx", stat.S_IFLNK | 0o777), b"/etc/passwd")], "a link"),
    "device": ([GOOD, (link_info(INNER + "model.onnx", stat.S_IFCHR | 0o666), b"")], "a special file"),
    "no manifest": ([("assets/edgeslim/tiny/model.onnx", b"x")], "no manifest.json"),
    "manifest elsewhere": ([("manifest.json", manifest_bytes())], "no manifest.json"),
    "two models": ([GOOD, ("assets/edgeslim/other/manifest.json", manifest_bytes(name="other"))], "2 manifests"),
    "name of another": ([("assets/edgeslim/other/manifest.json", manifest_bytes())], 'name "tiny"'),
    "a jar that is none": ([GOOD, ("classes.jar", b"no jar")], "can't be unpacked"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_zips_that_are_refused(case: str, tmp_path: Path, unpacked: Any, refuses: Any) -> None:
    entries, got = ZIPS[case]
    zip_of(tmp_path / "x.aar", *entries)
    with refuses(BadInputError, where="x.aar", got=got):
        unpacked(tmp_path / "x.aar")
    assert {path.name for path in tmp_path.iterdir()} == {"x.aar", "to"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_there_twice(tmp_path: Path, unpacked: Any, refuses: Any) -> None:
    zip_of(tmp_path / "x.aar", GOOD, GOOD)
    with refuses(BadInputError, where="x.aar", got="two entries"):
        unpacked(tmp_path / "x.aar")


def test_a_zip_bomb(tmp_path: Path, unpacked: Any, refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "ALWAYS_FINE_BYTES", 1 << 20)
    zip_of(tmp_path / "x.aar", GOOD, (INNER + "model.onnx", bytes(2 << 20)))
    with refuses(BadInputError, where="x.aar", got="unpacks to more than 1,048,576 bytes", expected="20 times"):
        unpacked(tmp_path / "x.aar")


def test_a_zip_bomb_inside_a_jar(tmp_path: Path, unpacked: Any, refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "ALWAYS_FINE_BYTES", 1 << 20)
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("A.class", bytes(2 << 20))
    zip_of(tmp_path / "x.aar", GOOD, ("classes.jar", jar.getvalue()))
    with refuses(BadInputError, where="x.aar: classes.jar", got="unpacks to more than"):
        unpacked(tmp_path / "x.aar")


def test_a_size_that_lies(aar: Path, tmp_path: Path, unpacked: Any, refuses: Any) -> None:
    """The directory says that an entry is smaller than it is: no more than that is read, and its sum is wrong."""
    data = bytearray(aar.read_bytes())
    at = data.rindex(b"assets/edgeslim/tiny/model.onnx") - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    (size,) = struct.unpack_from("<I", data, at + 24)
    assert size == len(CONTENTS["model.onnx"])
    struct.pack_into("<I", data, at + 24, 5)
    (tmp_path / "x.aar").write_bytes(data)
    with refuses(BadInputError, where="x.aar", got=""):
        unpacked(tmp_path / "x.aar")


def test_too_many_entries(tmp_path: Path, unpacked: Any, refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_ENTRIES", 3)
    zip_of(tmp_path / "x.aar", GOOD, ("a", b""), ("b", b""), ("c", b""))
    with refuses(BadInputError, where="x.aar", got="more than 3 entries"):
        unpacked(tmp_path / "x.aar")


def test_encrypted_and_exotic_entries(aar: Path, tmp_path: Path, refuses: Any) -> None:
    for offset, value, got in ((8, 1, "encrypted"), (10, 12, "compressed by method 12")):
        data = bytearray(aar.read_bytes())
        data[data.rindex(b"assets/edgeslim/tiny/model.onnx") - 46 + offset] = value
        path = tmp_path / f"{value}.aar"
        path.write_bytes(data)
        (tmp_path / f"to-{value}").mkdir()
        with refuses(BadInputError, where=f"{path}: assets/edgeslim/tiny/model.onnx", got=got):
            unpack_package(path, tmp_path / f"to-{value}")


# Tarballs that nobody should unpack


def tar_of(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


TAR_GOOD = entry("tiny/manifest.json", manifest_bytes())
TARS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "climbs out": ([TAR_GOOD, entry("tiny/../../evil", b"x")], "an entry named"),
    "absolute": ([TAR_GOOD, entry("/tmp/evil", b"x")], "an entry named '/tmp/evil'"),
    "symbolic link": ([TAR_GOOD, entry("tiny/a", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "a link"),
    "hard link": ([TAR_GOOD, entry("tiny/a", type=tarfile.LNKTYPE, linkname="tiny/manifest.json")], "a link"),
    "pipe": ([TAR_GOOD, entry("tiny/a", type=tarfile.FIFOTYPE)], "a special file"),
    "device": ([TAR_GOOD, entry("tiny/a", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "a special file"),
    "duplicate": ([TAR_GOOD, TAR_GOOD], "two entries"),
    "file as folder": ([TAR_GOOD, entry("tiny/manifest.json/x", b"x")], "can't be unpacked"),
    "no manifest": ([entry("tiny/model.onnx", b"x")], "no manifest.json"),
    "too deep": ([entry("a/tiny/manifest.json", manifest_bytes())], "no manifest.json"),
    "two models": ([TAR_GOOD, entry("other/manifest.json", manifest_bytes(name="other"))], "2 manifests"),
    "empty": ([], "no manifest.json"),
}


@pytest.mark.parametrize("case", TARS)
def test_tarballs_that_are_refused(case: str, tmp_path: Path, unpacked: Any, refuses: Any) -> None:
    entries, got = TARS[case]
    tar_of(tmp_path / "x.tar.gz", *entries)
    with refuses(BadInputError, where="x.tar.gz", got=got):
        unpacked(tmp_path / "x.tar.gz")
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar.gz", "to"}


@pytest.mark.parametrize("kind", ["file", "header", "after the end"])
def test_gzip_bombs(kind: str, tmp_path: Path, unpacked: Any, refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "ALWAYS_FINE_BYTES", 1 << 20)
    path, large = tmp_path / "x.tar.gz", bytes(3 << 20)
    if kind == "file":
        tar_of(path, TAR_GOOD, entry("tiny/model.onnx", large))
    elif kind == "header":  # a header whose own text would fill the memory
        tar_of(path, TAR_GOOD, entry("x", large, type=tarfile.XHDTYPE))
    else:
        tar_of(path, TAR_GOOD)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + large))
    with refuses(BadInputError, where="x.tar.gz", got="unpacks to more than"):
        unpacked(path)


def test_flipped_bits_of_a_tarball_never_pass(tarball: Path, tmp_path: Path) -> None:
    whole = tarball.read_bytes()
    for number, at in enumerate(range(12, len(whole), 37)):
        data = bytearray(whole)
        data[at] ^= 0x10
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(data)
        (tmp_path / f"to-{number}").mkdir()
        with pytest.raises(BadInputError):
            unpack_package(path, tmp_path / f"to-{number}")


@pytest.mark.parametrize("kind", ["aar", "tarball"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_cut_short(kind: str, share: float, request: pytest.FixtureRequest, tmp_path: Path, unpacked: Any) -> None:
    data = request.getfixturevalue(kind).read_bytes()
    (tmp_path / "x").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInputError, match="x: "):
        unpacked(tmp_path / "x")


def test_what_is_no_package(tmp_path: Path, refuses: Any) -> None:
    (tmp_path / "x.aar").write_text("hello", encoding="utf-8")
    (tmp_path / "made").mkdir()
    with refuses(BadInputError, where="x.aar", got="it begins with", expected="an .aar or a .tar.gz"):
        unpack_package(tmp_path / "x.aar", tmp_path)
    with refuses(BadInputError, where="none.aar", got="No such file"):
        unpack_package(tmp_path / "none.aar", tmp_path)
    (tmp_path / "made" / "y.aar").touch()
    with refuses(BadInputError, where="made", got="a folder", hint="made/y.aar"):
        unpack_package(tmp_path / "made", tmp_path)
