"""Samples read from text files and tables, and their split into calibration and evaluation.

Text comes from ``.txt`` (a line a sample), ``.csv``, ``.jsonl`` or ``.parquet`` through the ``datasets`` library, which
works on the file alone: nothing is downloaded, and its cache lives in a temporary folder.

Calibration and evaluation must not share a sample, or the figures flatter. So a split goes by content: the hash of
the seed and a sample decides, repeated samples fall on one side, and the result is the same on every machine and in
whatever order the file lists its rows.
"""

from __future__ import annotations

import csv
import hashlib
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeslim.errors import BadInputError, near_miss

__all__ = [
    "LABEL_COLUMNS",
    "Example",
    "class_index",
    "find_column",
    "load_examples",
    "rank_content",
    "read_columns",
    "read_labels",
    "split_examples",
    "split_rows",
]

TEXT_COLUMNS = ("text", "sentence", "content", "review", "document", "query", "question", "comment", "title")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment")
FORMATS = ".txt, .csv, .jsonl or .parquet"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and, where the data has labels, its class: an index or a name."""

    text: str
    label: int | str | None = None


def load_examples(
    path: Path, *, text_column: str | None = None, label_column: str | None = None, limit: int | None = None
) -> tuple[Example, ...]:
    """Reads the samples of a text file or table, in its order, the first ``limit`` of them.

    Without ``text_column`` and ``label_column`` the usual column names are looked for; ``label_column=""`` reads no
    labels. Blank lines of a ``.txt`` are dropped. Labels that are whole numbers in every row are class indices,
    others are names.

    Raises:
        BadInputError: the file can't be read, has no rows or no text column, or a row lacks its text or label.
    """
    kind = path.suffix.lower()
    if kind == ".txt":
        texts = [line.strip() for line in read_columns(path)["text"]]
        examples = [Example(text=line) for line in texts if line][:limit]
    elif kind in {".csv", ".jsonl", ".parquet"}:
        columns = read_columns(path)
        text_column = find_column(path, columns, text_column, TEXT_COLUMNS, "text_column")
        if text_column is None:
            raise BadInputError(
                str(path),
                "no text column among " + ", ".join(f'"{name}"' for name in columns),
                expected="a column named " + ", ".join(TEXT_COLUMNS),
                hint=_hint_text_column(columns),
            )
        label_column = find_column(path, columns, label_column, LABEL_COLUMNS, "label_column")
        texts = [_check_text(value, path, text_column, row) for row, value in enumerate(columns[text_column][:limit])]
        labels = read_labels(columns[label_column][:limit], path, label_column) if label_column else [None] * len(texts)
        examples = [Example(text=text, label=label) for text, label in zip(texts, labels, strict=True)]
    elif path.is_file():
        raise BadInputError(str(path), f'unknown kind of file "{path.suffix}"', expected=f"a {FORMATS} file")
    else:
        raise BadInputError(str(path), "no such file", expected=f"a {FORMATS} file of samples")
    if not examples:
        raise BadInputError(str(path), "no rows", expected="one sample or more")
    return tuple(examples)


def split_examples(
    examples: Sequence[Example], *, calibration: int, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits off ``calibration`` samples; what is left is for evaluation. Both keep the order of ``examples``.

    Texts that differ only in case or white space count as one. Calibration takes each text once, and evaluation gets
    none of its copies.

    Raises:
        BadInputError: there are too few different texts to leave one for evaluation.
    """
    keys = [" ".join(example.text.split()).casefold().encode() for example in examples]
    chosen, rest = split_rows(keys, calibration, seed)
    return tuple(examples[row] for row in chosen), tuple(examples[row] for row in rest)


def split_rows(keys: Sequence[bytes], calibration: int, seed: int) -> tuple[list[int], list[int]]:
    """The rows that calibrate and those that evaluate, by the content that ``keys`` stand for.

    Raises:
        BadInputError: there are too few different keys to leave one for evaluation.
    """
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    if calibration < 1 or len(first) <= calibration:
        raise BadInputError(
            "data",
            f"{len(first)} different samples, of which {calibration} for calibration",
            expected="one sample or more on either side",
            hint="give more data, or ask for fewer calibration samples",
        )
    chosen = set(sorted(first, key=lambda key: rank_content(key, seed))[:calibration])
    return sorted(first[key] for key in chosen), [row for row, key in enumerate(keys) if key not in chosen]


def rank_content(content: bytes, seed: int) -> bytes:
    """What puts contents into an order that depends on ``seed`` and on themselves alone."""
    return hashlib.sha256(b"%d:" % seed + content).digest()


def read_columns(path: Path) -> Mapping[str, list[Any]]:
    """The file's rows by column, read by ``datasets`` without its cache, bars and log lines.

    Images in a ``.parquet`` come as tables with their ``bytes``, not decoded.

    Raises:
        BadInputError: there is no such file, it has no rows, or they can't be read.
    """
    _check_rows(path)
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="edgeslim-data-") as cache, warnings.catch_warnings():
            # The CSV builder leaves its file to the garbage collector; a row longer than its header only warns.
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.filterwarnings("error", message=".*loss of data.*")
            return cast(Mapping[str, list[Any]], _read_table(path, cache).to_dict())
    except Exception as error:  # datasets wraps whatever its parser raised, at times in several layers
        if isinstance(error, ValueError) and "corresponds to no data" in str(error):
            raise BadInputError(str(path), "no rows", expected="one sample or more") from error
        kind = path.suffix.lower()
        expected = f"a readable {kind} file" + ("" if kind == ".parquet" else " in UTF-8")
        raise BadInputError(str(path), _tell_cause(error), expected=expected) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def find_column(
    path: Path, columns: Mapping[str, object], wanted: str | None, usual: Sequence[str], option: str
) -> str | None:
    """The name of the column ``wanted``, or of the first ``usual`` one; ``option`` is the key that names it.

    Raises:
        BadInputError: there is no column ``wanted``.
    """
    if wanted:
        if wanted not in columns:
            raise BadInputError(
                f"{path}: {option}",
                f'no column "{wanted}"',
                expected="one of " + ", ".join(columns),
                hint=near_miss(wanted, columns),
            )
        return wanted
    if wanted == "":
        return None
    by_name = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((by_name[name] for name in usual if name in by_name), None)


def read_labels(values: Sequence[object], path: Path, column: str) -> list[int | str]:
    """A class index a row if all are whole numbers, else a name a row.

    Raises:
        BadInputError: a row without a label, or one that is neither.
    """
    labels: list[int | str] = []
    for row, value in enumerate(values):
        where = f"{path}: row {row + 1}, {column}"
        hint = 'label_column = "" reads the text alone'
        if value is None or value != value or (isinstance(value, str) and value.strip().lower() in {"", "nan"}):
            raise BadInputError(where, "no label", expected="a class index or name in every row", hint=hint)
        if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
            labels.append(int(value))
        elif isinstance(value, str):
            labels.append(value.strip())
        else:
            raise BadInputError(where, f"{value!r}", expected="a class index or name", hint=hint)
    if all(isinstance(label, int) or re.fullmatch(r"[+-]?\d+", label) for label in labels):
        return [int(label) for label in labels]
    return [str(label) for label in labels]


def class_index(label: int | str, labels: Mapping[str, int] | None) -> int:
    """The class index of a label, which is one already or the name of one among ``labels``.

    Raises:
        BadInputError: there is no such class.
    """
    known = labels or {}
    if isinstance(label, str):
        if label in known:
            return known[label]
        raise BadInputError(
            "data",
            f'unknown label "{label}"',
            expected=("one of " + ", ".join(known)) if known else "class indices, for the model names no labels",
            hint=near_miss(label.lower(), {name.lower() for name in known}),
        )
    if label < 0 or (known and label not in known.values()):
        named = ", ".join(f"{index} ({name})" for name, index in sorted(known.items(), key=lambda item: item[1]))
        raise BadInputError("data", f"unknown class index {label}", expected=named or "0 or more")
    return label


def _check_rows(path: Path) -> None:
    if not path.is_file():
        raise BadInputError(str(path), "no such file", expected=f"a {FORMATS} file of samples")
    with path.open("rb") as file:
        head = file.read(4096)
    if len(head) < 4096 and not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise BadInputError(str(path), "no rows", expected="one sample or more")


def _read_table(path: Path, cache: str) -> Any:
    import datasets

    common: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
    kind = path.suffix.lower()
    if kind == ".parquet":
        table = datasets.Dataset.from_parquet(str(path), **common)
        images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
        for name in images:
            table = table.cast_column(name, datasets.Image(decode=False))
        return table
    common["encoding"] = "utf-8-sig"
    if kind == ".txt":
        return datasets.Dataset.from_text(str(path), **common)
    if kind == ".jsonl":
        return datasets.Dataset.from_json(str(path), **common)
    # As strings, for the guessed types would turn "NA" into a missing text and "1" into a float.
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file))
    types = datasets.Features({name: datasets.Value("string") for name in names})
    options = {"features": types, "index_col": False, "keep_default_na": False, "na_values": [""]}
    return datasets.Dataset.from_csv(str(path), **common, **options)


def _hint_text_column(columns: Mapping[str, object]) -> str:
    if len(columns) == 1 and (found := re.search("[;\t|]", next(iter(columns)))):
        return f"the columns seem to be divided by {found[0]!r}: edgeslim reads commas"
    close = [name for name in columns if near_miss(name.lower(), TEXT_COLUMNS)]
    return f'text_column = "{close[0]}" if that is the text' if close else 'name it, as in text_column = "body"'


def _check_text(value: object, path: Path, column: str, row: int) -> str:
    if isinstance(value, str):
        return value
    got = "no text" if value is None else f"{value!r} ({type(value).__name__})"
    raise BadInputError(f"{path}: row {row + 1}, {column}", got, expected="a string")


def _tell_cause(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None and not isinstance(error, UnicodeDecodeError):
        error = cause
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"can't be read: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
