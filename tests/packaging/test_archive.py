from __future__ import annotations

import os
import stat
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging.archive import Entry, apk_download_bytes, check_name, deflated_bytes, write_zip

TEXT = b"the same words again and again " * 400


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "in.bin"
    file.write_bytes(os.urandom(5000))
    entries = [Entry(name="b/x.bin", data=file, stored=True), Entry(name="a.txt", data=TEXT), Entry(name="c", data=b"")]
    first = write_zip(tmp_path / "1" / "x.zip", entries).read_bytes()
    later = time.time() + 100_000
    os.utime(file, (later, later))
    file.chmod(0o600)
    assert write_zip(tmp_path / "2" / "x.zip", reversed(entries)).read_bytes() == first


def test_entries(tmp_path: Path) -> None:
    out = write_zip(tmp_path / "x.zip", [Entry(name="s", data=TEXT, stored=True), Entry(name="d", data=TEXT)])
    with zipfile.ZipFile(out) as archive:
        deflated, stored = archive.infolist()
        assert (deflated.filename, stored.filename) == ("d", "s")
        assert stored.compress_type == zipfile.ZIP_STORED
        assert stored.compress_size == len(TEXT)
        assert deflated.compress_size < len(TEXT) / 10
        for info in (deflated, stored):
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == stat.S_IFREG | 0o644
            assert info.flag_bits == 0  # sizes stand in the local header: readers that stream need no descriptor
            assert archive.read(info) == TEXT
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/../x",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "C:/x",
        "c:x",
        "a\nb",
        "a\0",
    ],
)
def test_names_that_leave_the_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="can't be the name of an entry"):
        check_name(name)
    with pytest.raises(BadInputError):
        write_zip(tmp_path / "x.zip", [Entry(name=name, data=b"")])
    assert not list(tmp_path.iterdir())


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="two entries"):
        write_zip(tmp_path / "x.zip", [Entry(name="a/b", data=b"1"), Entry(name="a/B", data=b"2")])


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "x.zip"
    out.write_bytes(b"older")
    with pytest.raises(FileNotFoundError):
        write_zip(out, [Entry(name="a", data=TEXT), Entry(name="b", data=tmp_path / "missing")])
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_apk_download_bytes(tmp_path: Path) -> None:
    packed = os.urandom(10_000)
    jar = write_zip(tmp_path / "classes.jar", [Entry(name="io/edgeslim/A.class", data=TEXT, stored=True)])
    assets = {"assets/edgeslim/m/model.onnx": TEXT, "assets/edgeslim/m/weights.esz": packed}
    entries = [Entry(name=name, data=data) for name, data in assets.items()]
    entries += [Entry(name="classes.jar", data=jar), Entry(name="proguard.txt", data=TEXT)]
    download = apk_download_bytes(write_zip(tmp_path / "x.aar", entries))
    text = len(zlib.compress(TEXT, 9)) - 6  # without zlib's header and checksum
    names = sum(2 * len(name) + 76 for name in assets)
    assert download == 2 * text + len(packed) + names
    assert deflated_bytes(TEXT) == text
