"""Pictures as samples: folders of them, or a ``.parquet`` with an image column.

====================================  =============================================================================
``folder/CLASS/*.png`` (jpg, bmp)     the folder's name is the class
``folder/*.png`` and ``labels.csv``   a table of files and labels, each picture named once
``folder/*.png``                      no labels
``*.parquet``                         a column of encoded images, and one of labels
====================================  =============================================================================

Pictures come from anywhere, so they are opened with suspicion: by the decoders of three formats alone, and only after
the file's size and the picture's sides, which its header tells, were found to be bearable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeslim.datasets.arrays import Arrays
from edgeslim.datasets.data import LABEL_COLUMNS, class_index, find_column, read_columns, read_labels
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.errors import BadInputError, MissingToolError, near_miss

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PIXELS", "Picture", "PictureFeed", "class_names", "find_pictures", "load_pixels", "open_picture"]

PIXELS = "pixels"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "JPEG", "BMP")
IMAGE_COLUMNS = ("image", "img", "picture", "pixels", "jpg", "png")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path", "name")
LABELS_FILE = "labels.csv"
MAX_FILE_BYTES = 64 << 20
MAX_SIDE = 16_384
MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it only warns
MAX_TOTAL_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture, a file's path or the bytes themselves, and its class; ``where`` names it in errors."""

    where: str
    content: Path | bytes
    label: int | str | None = None


def find_pictures(path: Path, *, label_column: str | None = None) -> tuple[Picture, ...]:
    """The pictures of a folder or a ``.parquet`` in a fixed order: by name, or as the table has them.

    Raises:
        BadInputError: there are none, or a file or label is out of place.
    """
    if path.is_dir():
        found = _from_folder(path, label_column)
    elif path.suffix.lower() == ".parquet":
        found = _from_table(path, label_column)
    else:
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BadInputError(
            str(path),
            f'no pictures in a "{path.suffix}" file' if path.is_file() else "no such folder",
            expected="a folder of pictures (CLASS/*.png, or *.png and labels.csv), or a .parquet with images",
            hint="" if path.is_file() else near_miss(path.name, near),
        )
    if not found:
        raise BadInputError(str(path), "no pictures", expected="files that end in " + ", ".join(SUFFIXES))
    return tuple(found)


def class_names(path: Path) -> tuple[str, ...]:
    """The names of a folder's class folders in alphabetical order, if it has any and they aren't plain numbers."""
    names = [entry.name for entry in _entries(path) if entry.is_dir()] if path.is_dir() else []
    return () if all(name.isdecimal() for name in names) else tuple(names)


class PictureFeed(Mapping[str, "np.ndarray[Any, Any]"]):
    """One run's input, kept as uint8 pixels and normalized each time that it is asked for: a quarter of the memory."""

    def __init__(self, name: str, pixels: np.ndarray[Any, Any], preprocessing: Preprocessing) -> None:
        self._name, self._pixels, self._preprocessing = name, pixels, preprocessing

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """The model's input ``name``."""
        if name != self._name:
            raise KeyError(name)
        return self._preprocessing.normalize(self._pixels)

    def __iter__(self) -> Iterator[str]:
        """The one name."""
        yield self._name

    def __len__(self) -> int:
        """One."""
        return 1


def load_pixels(
    path: Path, preprocessing: Preprocessing, *, labels: Mapping[str, int] | None, label_column: str | None = None
) -> Arrays:
    """All pictures, decoded and brought to size: ``PIXELS`` uint8 [N, height, width, channels], classes by ``labels``.

    Raises:
        BadInputError: a picture can't be read, a class is unknown, or all together are more than memory should hold.
    """
    pictures = find_pictures(path, label_column=label_column)
    each = int(np.prod(preprocessing.size)) * (3 if preprocessing.channels == "rgb" else 1)
    if each * len(pictures) > MAX_TOTAL_BYTES:
        raise BadInputError(
            str(path),
            f"{len(pictures):,} pictures of {each:,} bytes",
            expected=f"at most {MAX_TOTAL_BYTES // each:,} of that size",
            hint="a few thousand pictures tell the accuracy to a percent",
        )
    classes = [class_index(picture.label, labels) for picture in pictures if picture.label is not None]
    if classes and len(classes) != len(pictures):
        raise BadInputError(str(path), "some pictures have a label, others none", expected="a label for each, or none")
    pixels = []
    for picture in pictures:
        try:
            pixels.append(preprocessing.prepare(open_picture(picture)))
        except ValueError as error:
            got, _, expected = str(error).partition(", expected ")
            raise BadInputError(picture.where, got, expected=expected) from error
    return Arrays(inputs={PIXELS: np.stack(pixels)}, labels=tuple(classes))


def open_picture(picture: Picture) -> Image:
    """Decodes a picture.

    Raises:
        BadInputError: it is broken, of another format, or too large.
        MissingToolError: Pillow isn't installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingToolError(
            picture.where,
            "Pillow isn't installed",
            expected="Pillow, which decodes pictures",
            hint="pip install Pillow",
        ) from error

    content = picture.content
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadInputError(picture.where, f"{size:,} bytes", expected=f"a picture of at most {MAX_FILE_BYTES:,} bytes")
    source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the sides are looked at below
            with Image.open(source, formats=FORMATS) as image:
                _check_sides(picture.where, image.width, image.height)
                image.load()
                return image.copy()
    except UnidentifiedImageError as error:
        raise BadInputError(
            picture.where,
            "no picture, or one of another format" if size else "an empty file",
            expected="a PNG, JPEG or BMP file",
        ) from error
    except Image.DecompressionBombError as error:
        raise BadInputError(picture.where, str(error), expected=f"at most {MAX_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise BadInputError(
            picture.where, f"a broken picture: {error}", expected="a whole file", hint="was the download cut short?"
        ) from error


def _check_sides(where: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadInputError(
            where,
            f"{width:,} x {height:,} pixels",
            expected=f"sides of at most {MAX_SIDE:,} and {MAX_PIXELS:,} pixels",
            hint="a file that unpacks to so much may be an attack; resize it if it isn't",
        )


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, hidden files left out."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _from_folder(folder: Path, label_column: str | None) -> list[Picture]:
    entries = _entries(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir() and entry.name != LABELS_FILE]
    table = folder / LABELS_FILE
    if classes and (files or table.is_file()):
        raise BadInputError(
            str(folder),
            f"class folders beside {(files or [table])[0].name}",
            expected=f"folders of pictures, or pictures and {LABELS_FILE}",
        )
    if classes:
        return [
            Picture(where=str(file), content=_check_suffix(file), label=_label(entry.name))
            for entry in classes
            for file in _entries(entry)
        ]
    labels: Mapping[str, int | str] = _read_labels_file(table, label_column) if table.is_file() else {}
    names = [file.name for file in files]
    for name in labels:
        if name not in names:
            raise BadInputError(
                str(table), f'no picture "{name}"', expected="files of its folder", hint=near_miss(name, names)
            )
    for name in names:
        if labels and name not in labels:
            raise BadInputError(str(table), f'no row for "{name}"', expected="a row for each picture of its folder")
    return [Picture(where=str(file), content=_check_suffix(file), label=labels.get(file.name)) for file in files]


def _label(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _check_suffix(file: Path) -> Path:
    if file.suffix.lower() in SUFFIXES and file.is_file():
        return file
    raise BadInputError(
        str(file),
        f'no picture: "{file.suffix}"' if file.is_file() else "a folder in a folder",
        expected="files that end in " + ", ".join(SUFFIXES),
        hint=near_miss(file.suffix.lower(), SUFFIXES) or "put what is no picture elsewhere",
    )


def _read_labels_file(table: Path, label_column: str | None) -> Mapping[str, int | str]:
    columns = read_columns(table)
    file_column = find_column(table, columns, None, FILE_COLUMNS, "file_column")
    label_name = find_column(table, columns, label_column, LABEL_COLUMNS, "label_column")
    if file_column is None or label_name is None:
        raise BadInputError(
            str(table), "columns " + ", ".join(columns), expected="a column `file` and a column `label`"
        )
    names = [str(name) for name in columns[file_column]]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInputError(str(table), f'"{twice}" stands there twice', expected="one row a picture")
    return dict(zip(names, read_labels(columns[label_name], table, label_name), strict=True))


def _from_table(path: Path, label_column: str | None) -> list[Picture]:
    columns = read_columns(path)
    image_column = find_column(path, columns, None, IMAGE_COLUMNS, "image_column")
    if image_column is None:
        raise BadInputError(
            str(path), "columns " + ", ".join(columns), expected="images in a column named " + ", ".join(IMAGE_COLUMNS)
        )
    label_name = find_column(path, columns, label_column, LABEL_COLUMNS, "label_column")
    values: Sequence[Any] = columns[image_column]
    labels: Sequence[int | str | None] = (
        read_labels(columns[label_name], path, label_name) if label_name else [None] * len(values)
    )
    found = []
    for row, (value, label) in enumerate(zip(values, labels, strict=True)):
        where = f"{path}: row {row + 1}, {image_column}"
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise BadInputError(
                where, "no bytes of an image", expected="encoded images inside the file, not their paths"
            )
        found.append(Picture(where=where, content=content, label=label))
    return found
