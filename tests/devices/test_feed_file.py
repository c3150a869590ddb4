"""Files of tensors: there and back, and nothing believed that a device wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgeslim.core import Feed
from edgeslim.devices.feed_file import ELEMENT_TYPES, read_feeds, write_feeds
from edgeslim.errors import CheckError


def some_feeds() -> list[Feed]:
    one: Feed = {name: np.arange(6).reshape(2, 3).astype(name) for name in ELEMENT_TYPES.values()}
    return [one, {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 4), np.int64)}]


def test_every_type_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.feed"
    write_feeds(path, some_feeds())
    back = read_feeds(path, expected=2, where="board")
    for wrote, read in zip(some_feeds(), back, strict=True):
        assert list(wrote) == list(read)
        for name, value in wrote.items():
            assert read[name].dtype == value.dtype
            np.testing.assert_array_equal(read[name], value)


def test_literal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.feed"
    write_feeds(path, [{"ab": np.array([1, -1], np.int8)}])
    expected = b"EDGEFEED" + struct.pack("<IIII", 1, 1, 1, 2) + b"ab" + struct.pack("<iIqQ", 3, 1, 2, 2) + b"\x01\xff"
    assert path.read_bytes() == expected


def test_strings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match='input "text"'):
        write_feeds(tmp_path / "x.feed", [{"text": np.array(["a"], object)}])


def test_every_truncation_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.feed"
    write_feeds(path, [{"x": np.ones((2, 2), np.float32)}])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckError, match="board"):
            read_feeds(path, expected=1, where="board")
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckError, match="1 bytes too many"):
        read_feeds(path, expected=1, where="board")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (struct.pack("<II", 2, 1), "no feed file"),
        (struct.pack("<II", 1, 7), "7 runs"),
        (struct.pack("<III", 1, 1, 1 << 31), "2147483648 tensors"),
        (struct.pack("<IIII", 1, 1, 1, 1 << 31), "name of 2147483648 bytes"),
        (struct.pack("<IIII", 1, 1, 1, 1) + b"x" + struct.pack("<iI", 99, 0), "element type 99"),
        (struct.pack("<IIII", 1, 1, 1, 1) + b"x" + struct.pack("<iIqQ", 1, 1, -4, 16), "16 bytes for the shape"),
        (struct.pack("<IIII", 1, 1, 1, 1) + b"x" + struct.pack("<iIqQ", 1, 1, 1 << 40, 1 << 42), "cut off"),
    ],
)
def test_hostile_heads(tmp_path: Path, head: bytes, says: str) -> None:
    path = tmp_path / "x.feed"
    path.write_bytes(b"EDGEFEED" + head)
    with pytest.raises(CheckError, match=says):
        read_feeds(path, expected=1, where="board")
