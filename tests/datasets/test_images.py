"""Pictures: every way that they can lie there, and every way that one can be broken."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeslim.datasets import images
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.datasets.samples import DataOptions, load_samples
from edgeslim.errors import BadInputError

GRAY = Preprocessing(size=(4, 4), channels="gray")


def encode(value: int, kind: str = "PNG") -> bytes:
    """A picture of 4 x 4 pixels, all of one gray."""
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def lay(folder: Path, **files: bytes | str) -> Path:
    """Writes files into ``folder``; ``__`` in a name divides folders, ``_`` stands for a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def grays(path: Path, labels: dict[str, int] | None = None) -> list[tuple[int, int | None]]:
    """The gray and the class of each picture."""
    arrays = images.load_pixels(path, GRAY, labels=labels)
    classes = arrays.labels or (None,) * arrays.rows
    return [(int(pixels.mean()), label) for pixels, label in zip(arrays.inputs[images.PIXELS], classes, strict=True)]


def test_class_folders(tmp_path: Path) -> None:
    lay(tmp_path, dog__b_png=encode(20), dog__a_PNG=encode(10), cat__c_bmp=encode(30, "BMP"), _hidden="x")
    lay(tmp_path, cat__d_jpg=encode(40, "JPEG"))
    assert grays(tmp_path, {"cat": 0, "dog": 1}) == [(30, 0), (40, 0), (10, 1), (20, 1)]
    assert images.class_names(tmp_path) == ("cat", "dog")


def test_folders_named_by_index(tmp_path: Path) -> None:
    lay(tmp_path, **{"0__a_png": encode(1), "12__a_png": encode(2)})
    assert grays(tmp_path) == [(1, 0), (2, 12)]
    assert images.class_names(tmp_path) == ()


def test_flat_folders(tmp_path: Path) -> None:
    lay(tmp_path, b_png=encode(2), a_png=encode(1))
    assert grays(tmp_path) == [(1, None), (2, None)]
    lay(tmp_path, labels_csv="file_name,label\nb.png,1\na.png,0\n")
    assert grays(tmp_path) == [(1, 0), (2, 1)]


@pytest.mark.parametrize("typed", [True, False])
def test_parquet(tmp_path: Path, typed: bool) -> None:
    import datasets

    rows: dict[str, Any] = {"image": [{"bytes": encode(9), "path": None}, {"bytes": encode(5), "path": "x.png"}]}
    table = datasets.Dataset.from_dict({**rows, "label": [1, 0]})
    if typed:
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "a.parquet")
    assert grays(tmp_path / "a.parquet") == [(9, 1), (5, 0)]


def test_parquet_refuses(tmp_path: Path) -> None:
    import datasets

    for name, rows, got in (
        ("a", {"text": ["x"]}, "images in a column named image"),
        ("b", {"image": [{"bytes": None, "path": "/etc/passwd"}]}, "row 1, image: no bytes of an image"),
        ("c", {"image": ["x.png"]}, "row 1, image: no bytes of an image"),
        ("d", {"image": [b"x"]}, "row 1, image: no picture"),
    ):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(BadInputError, match=re.escape(got)):
            images.load_pixels(tmp_path / f"{name}.parquet", GRAY, labels=None)


@pytest.mark.parametrize(
    ("files", "got"),
    [
        ({}, "no pictures\n  expected: files that end in .png"),
        ({"cat__readme_txt": "x"}, 'readme.txt: no picture: ".txt"'),
        ({"cat__a_pgn": "x"}, 'hint: did you mean ".png"?'),
        ({"cat__inner__a_png": encode(1)}, "a folder in a folder"),
        ({"cat__a_png": encode(1), "b_png": encode(2)}, "class folders beside b.png"),
        ({"cat__a_png": encode(1), "labels_csv": "file,label\n"}, "class folders beside labels.csv"),
        ({"ct__a_png": encode(1)}, 'unknown label "ct"\n  expected: one of cat, dog\n  hint: did you mean "cat"?'),
        ({"7__a_png": encode(1)}, "unknown class index 7"),
        ({"a_png": encode(1), "labels_csv": "file,label\nb.png,cat\n"}, 'no picture "b.png"'),
        ({"ab_png": encode(1), "labels_csv": "file,label\nad.png,cat\n"}, 'hint: did you mean "ab.png"?'),
        ({"a_png": encode(1), "labels_csv": "file,label\n../a.png,cat\n"}, 'no picture "../a.png"'),
        ({"a_png": encode(1), "b_png": encode(2), "labels_csv": "file,label\na.png,cat\n"}, 'no row for "b.png"'),
        ({"a_png": encode(1), "labels_csv": "file,label\na.png,cat\na.png,dog\n"}, '"a.png" stands there twice'),
        ({"a_png": encode(1), "labels_csv": "x,y\na.png,cat\n"}, "columns x, y"),
        ({"cat__a_png": b""}, "a.png: an empty file"),
        ({"cat__a_png": b"no picture"}, "a.png: no picture, or one of another format"),
        ({"cat__a_png": encode(1, "GIF")}, "expected: a PNG, JPEG or BMP file"),
        ({"cat__a_png": encode(1)[:-20]}, "a.png: a broken picture"),
        ({"cat__a_jpg": encode(1, "JPEG")[:200]}, "a.jpg: "),
    ],
)
def test_refuses(tmp_path: Path, files: dict[str, bytes | str], got: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(got)):
        images.load_pixels(lay(tmp_path, **files), GRAY, labels={"cat": 0, "dog": 1})


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    lay(tmp_path, test__a_png=encode(1), a_png=encode(1))
    with pytest.raises(BadInputError, match=re.escape("no such folder\n  expected: a folder of pictures")) as caught:
        images.find_pictures(tmp_path / "tests")
    assert caught.value.hint == 'did you mean "test"?'
    with pytest.raises(BadInputError, match=re.escape('no pictures in a ".png" file')):
        images.find_pictures(tmp_path / "a.png")


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it has these sides, whatever ``data`` holds."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (png(60_000, 60_000), "pixels"),
        (png(10_000, 10_000), "10,000 x 10,000 pixels"),
        (png(20_000, 2), "20,000 x 2 pixels"),
        (png(0, 4), "a.png: "),
        (png(64, 64, b"\0" * 100), "a broken picture"),
    ],
)
def test_refuses_bombs(content: bytes, got: str) -> None:
    with pytest.raises(BadInputError, match=got) as caught:
        images.open_picture(images.Picture(where="a.png", content=content))
    assert caught.value.where == "a.png"


def test_refuses_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, a_png=encode(1), b_png=encode(2))
    monkeypatch.setattr(images, "MAX_TOTAL_BYTES", 31)
    with pytest.raises(BadInputError, match="2 pictures of 16 bytes\n  expected: at most 1"):
        images.load_pixels(tmp_path, GRAY, labels=None)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(BadInputError, match="a picture of at most 10 bytes"):
        images.open_picture(images.Picture(where="a", content=encode(1)))


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    lay(tmp_path, a_png=encode(1))
    with pytest.raises(BadInputError, match="4 x 4 pixels\n  expected: 5 x 5: the mode is none") as caught:
        images.load_pixels(tmp_path, Preprocessing(size=(5, 5), mode="none"), labels=None)
    assert caught.value.where == str(tmp_path / "a.png")


def test_pictures_stay_bytes_until_they_are_run(tmp_path: Path) -> None:
    import tracemalloc

    big = Preprocessing(size=(64, 64), channels="rgb")
    for number in range(60):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    options = DataOptions(file=str(tmp_path), calibration_samples=20)
    tracemalloc.start()
    try:
        samples = load_samples(
            options, base=tmp_path, tokenizer=None, input_names=["x"], labels=None, example=None, seed=0,
            preprocessing=big,
        ).restricted(["x"])  # fmt: skip
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    pixels = 60 * 64 * 64 * 3
    assert kept < 2 * pixels, "as float32 they would take four times as much"
    feed = samples.calibration[0].feed
    np.testing.assert_array_equal(feed["x"], feed["x"])
    assert feed["x"].dtype == np.float32
    assert (list(feed), len(feed)) == (["x"], 1)
    with pytest.raises(KeyError):
        feed["y"]
