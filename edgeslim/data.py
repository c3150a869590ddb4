"""Samples for calibration and evaluation: read from files, split, and encoded as model inputs.

Text comes from ``.txt`` (a line a sample), ``.csv`` or ``.jsonl`` through the ``datasets`` library, which works on the
file alone: nothing is downloaded, and its cache lives in a temporary folder. Arrays for models without a tokenizer
come from ``.npz``, one array a model input, samples along the first axis. Without any data, ``builtin_text`` cuts
English sentences from the reference manual that Python carries.

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
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from edgeslim.core import Batch
from edgeslim.errors import BadInputError, near_miss

__all__ = [
    "Arrays",
    "Example",
    "Tokenizer",
    "batch_arrays",
    "builtin_text",
    "encode_examples",
    "load_arrays",
    "load_examples",
    "load_tokenizer",
    "split_arrays",
    "split_examples",
]

TEXT_COLUMNS = ("text", "sentence", "content", "review", "document", "query", "question", "comment", "title")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment")
TOKENIZER_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids")
FORMATS = ".txt, .csv or .jsonl"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and, where the data has labels, its class: an index or a name."""

    text: str
    label: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Samples of a model without a tokenizer: each input an array ``[N, ...]``, and a class index a sample or none."""

    inputs: Mapping[str, np.ndarray[Any, Any]]
    labels: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))


class Tokenizer(Protocol):
    """What ``encode_examples`` needs of a Hugging Face tokenizer."""

    pad_token: Any

    def __call__(
        self,
        text: list[str],
        *,
        truncation: bool,
        max_length: int,
        padding: bool,
        return_attention_mask: bool,
        return_token_type_ids: bool,
    ) -> Mapping[str, Any]:
        """Encodes texts: lists of token ids, and of masks, by input name."""
        ...


def load_examples(
    path: Path, *, text_column: str | None = None, label_column: str | None = None, limit: int | None = None
) -> tuple[Example, ...]:
    """Reads the samples of a ``.txt``, ``.csv`` or ``.jsonl`` file, in its order, the first ``limit`` of them.

    Without ``text_column`` and ``label_column`` the usual column names are looked for; ``label_column=""`` reads no
    labels. Blank lines of a ``.txt`` are dropped. Labels that are whole numbers in every row are class indices,
    others are names.

    Raises:
        BadInputError: the file can't be read, has no rows or no text column, or a row lacks its text or label.
    """
    if not path.is_file():
        raise BadInputError(str(path), "no such file", expected=f"a {FORMATS} file of samples")
    kind = path.suffix.lower()
    if kind == ".txt":
        texts = [line.strip() for line in _read_columns(path, kind)["text"]]
        examples = [Example(text=line) for line in texts if line][:limit]
    elif kind in {".csv", ".jsonl"}:
        columns = _read_columns(path, kind)
        text_column = _find_column(path, columns, text_column, TEXT_COLUMNS, "text_column")
        if text_column is None:
            raise BadInputError(
                str(path),
                "no text column among " + ", ".join(f'"{name}"' for name in columns),
                expected="a column named " + ", ".join(TEXT_COLUMNS),
                hint=_hint_text_column(columns),
            )
        label_column = _find_column(path, columns, label_column, LABEL_COLUMNS, "label_column")
        texts = [_check_text(value, path, text_column, row) for row, value in enumerate(columns[text_column][:limit])]
        labels = (
            _read_labels(columns[label_column][:limit], path, label_column) if label_column else [None] * len(texts)
        )
        examples = [Example(text=text, label=label) for text, label in zip(texts, labels, strict=True)]
    else:
        raise BadInputError(str(path), f'unknown kind of file "{path.suffix}"', expected=f"a {FORMATS} file")
    if not examples:
        raise BadInputError(str(path), "no rows", expected="one sample or more")
    return tuple(examples)


def load_arrays(path: Path) -> Arrays:
    """Reads samples from an ``.npz``: an array ``[N, ...]`` a model input, and class indices as ``label [N]`` if any.

    Raises:
        BadInputError: the file can't be read, holds pickled objects, or its arrays differ in their number of samples.
    """
    if not path.is_file():
        raise BadInputError(str(path), "no such file", expected="an .npz file of arrays by input name")
    try:
        # Opened here, for NumPy leaves the file open when its content turns out to be no archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive of named ones")  # noqa: TRY004, TRY301
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInputError(
            str(path),
            f"can't be read: {error}",
            expected="an .npz file of plain number arrays",
            hint="numpy.savez(path, input_name=array, ...) writes one; arrays of objects aren't read",
        ) from error
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) == 0:
            raise BadInputError(
                f"{path}: {name}", f"shape {list(array.shape)}", expected="samples along the first axis"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BadInputError(
            str(path),
            "arrays of different lengths: " + ", ".join(f"{name} {length}" for name, length in lengths.items()),
            expected="the same number of samples in each",
        )
    label = arrays.pop("label", None)
    if not arrays:
        raise BadInputError(str(path), "no arrays", expected="one array a model input, named as the input is")
    if label is not None and (label.ndim != 1 or label.dtype.kind not in "iu"):
        raise BadInputError(
            f"{path}: label", f"{label.dtype} {list(label.shape)}", expected="whole numbers, one class index a sample"
        )
    return Arrays(inputs=arrays, labels=() if label is None else tuple(int(value) for value in label))


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
    chosen, rest = _split_rows(keys, calibration, seed)
    return tuple(examples[row] for row in chosen), tuple(examples[row] for row in rest)


def split_arrays(arrays: Arrays, *, calibration: int, seed: int) -> tuple[Arrays, Arrays]:
    """As ``split_examples``, for arrays: samples are the same if all their inputs are.

    Raises:
        BadInputError: there are too few different samples to leave one for evaluation.
    """
    names = sorted(arrays.inputs)
    keys = [
        b"".join(np.ascontiguousarray(arrays.inputs[name][row]).tobytes() for name in names)
        for row in range(arrays.rows)
    ]
    chosen, rest = _split_rows(keys, calibration, seed)
    return _take_rows(arrays, chosen), _take_rows(arrays, rest)


def batch_arrays(arrays: Arrays, input_names: Sequence[str], *, batch_size: int = 1) -> tuple[Batch, ...]:
    """Cuts ``arrays`` into runs of ``batch_size`` samples, in order, for a model with ``input_names``.

    Raises:
        BadInputError: the model wants an input that the file doesn't hold, or the file holds another.
    """
    missing = [name for name in input_names if name not in arrays.inputs]
    unknown = [name for name in arrays.inputs if name not in input_names]
    if missing or unknown:
        wrong = [f'no array for the model input "{name}"' for name in missing]
        wrong += [f'an array "{name}" that the model has no input for' for name in unknown]
        raise BadInputError("data", "; ".join(wrong), expected="one array a model input: " + ", ".join(input_names))
    batches = []
    for start in range(0, arrays.rows, batch_size):
        rows = slice(start, start + batch_size)
        feed = {name: arrays.inputs[name][rows] for name in input_names}
        batches.append(Batch(feed=feed, rows=len(feed[input_names[0]]), labels=arrays.labels[rows]))
    return tuple(batches)


def builtin_text(count: int, seed: int) -> tuple[Example, ...]:
    """``count`` different pieces of English from Python's own reference manual: one to four sentences each.

    The same ``seed`` gives the same pieces on one Python version. This is calm technical prose: enough to calibrate
    with, and no measure of quality on anybody's own text.

    Raises:
        BadInputError: this Python carries less text than that.
    """
    pieces = [piece for paragraph in _manual_paragraphs() for piece in _cut_pieces(paragraph, seed)]
    distinct = list(dict.fromkeys(pieces))
    if count > len(distinct):
        raise BadInputError(
            "built-in text",
            f"{count} samples wanted",
            expected=f"at most {len(distinct)}, which is what this Python carries",
            hint="give a file of your own text",
        )
    ranked = sorted(distinct, key=lambda piece: _rank_content(piece.encode(), seed))
    return tuple(Example(text=piece) for piece in ranked[:count])


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a local Hugging Face model folder, the fast kind where there is one.

    Code that the folder brings along is never run.

    Raises:
        BadInputError: the folder holds no tokenizer, or one that doesn't load.
    """
    if not folder.is_dir():
        raise BadInputError(str(folder), "no such folder", expected="a model folder with a tokenizer")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, use_fast=True)
    except Exception as error:  # a broken tokenizer file raises whatever its parser does
        raise BadInputError(
            str(folder),
            f"its tokenizer doesn't load: {_first_line(error)}",
            expected="tokenizer.json, or the vocabulary files of a tokenizer that transformers knows",
            hint="tokenizer.save_pretrained(folder) writes them",
        ) from error


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    input_names: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 1,
    labels: Mapping[str, int] | None = None,
) -> tuple[Batch, ...]:
    """Tokenizes ``examples`` into runs of ``batch_size`` samples, in order: int64 ``[B, S]`` for each input name.

    Texts are cut at ``max_length`` tokens. A run is as long as its longest text, so nothing is padded where
    ``batch_size`` is 1. ``labels`` gives the class index of each label name (a model's ``label2id``).

    Raises:
        BadInputError: the model wants an input that a tokenizer doesn't give, or a label isn't among ``labels``.
    """
    foreign = [name for name in input_names if name not in TOKENIZER_OUTPUTS]
    if foreign or "input_ids" not in input_names:
        got = f'the model input "{foreign[0]}" comes from no tokenizer' if foreign else 'no model input "input_ids"'
        raise BadInputError(
            "model",
            got,
            expected="inputs among " + ", ".join(TOKENIZER_OUTPUTS),
            hint="give the data as an .npz file with one array a model input",
        )
    if batch_size > 1 and tokenizer.pad_token is None:
        raise BadInputError("tokenizer", f"no padding token, for runs of {batch_size} texts", expected="runs of 1 text")
    batches = []
    for start in range(0, len(examples), batch_size):
        group = examples[start : start + batch_size]
        encoded = tokenizer(
            [example.text for example in group],
            truncation=True,
            max_length=max_length,
            padding=batch_size > 1,
            return_attention_mask="attention_mask" in input_names,
            return_token_type_ids="token_type_ids" in input_names,
        )
        for name in input_names:
            if name not in encoded:
                raise BadInputError("tokenizer", f'it gives no "{name}"', expected="all of " + ", ".join(input_names))
        feed = {name: np.asarray(encoded[name], dtype=np.int64) for name in input_names}
        classes = [_class_index(example.label, labels) for example in group if example.label is not None]
        if classes and len(classes) != len(group):
            raise BadInputError("data", "some samples have a label, others none", expected="a label for each, or none")
        batches.append(Batch(feed=feed, rows=len(group), labels=tuple(classes)))
    return tuple(batches)


def _read_columns(path: Path, kind: str) -> Mapping[str, list[Any]]:
    """The file's rows by column, read by ``datasets`` without its cache, bars and log lines."""
    if not path.read_bytes()[:4096].removeprefix(b"\xef\xbb\xbf").strip() and path.stat().st_size < 4096:
        raise BadInputError(str(path), "no rows", expected="one sample or more")
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="edgeslim-data-") as cache, warnings.catch_warnings():
            # The CSV builder leaves its file to the garbage collector; a row longer than its header only warns.
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.filterwarnings("error", message=".*loss of data.*")
            common: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True, "encoding": "utf-8-sig"}
            if kind == ".txt":
                table = datasets.Dataset.from_text(str(path), **common)
            elif kind == ".jsonl":
                table = datasets.Dataset.from_json(str(path), **common)
            else:
                # As strings, for the guessed types would turn "NA" into a missing text and "1" into a float.
                with path.open(encoding="utf-8-sig", newline="") as file:
                    names = next(csv.reader(file))
                types = datasets.Features({name: datasets.Value("string") for name in names})
                options = {"features": types, "index_col": False, "keep_default_na": False, "na_values": [""]}
                table = datasets.Dataset.from_csv(str(path), **common, **options)
            return cast(Mapping[str, list[Any]], table.to_dict())
    except Exception as error:  # datasets wraps whatever its parser raised, at times in several layers
        if isinstance(error, ValueError) and "corresponds to no data" in str(error):
            raise BadInputError(str(path), "no rows", expected="one sample or more") from error
        raise BadInputError(str(path), _tell_cause(error), expected=f"a readable {kind} file in UTF-8") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _tell_cause(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None and not isinstance(error, UnicodeDecodeError):
        error = cause
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"can't be read: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _find_column(
    path: Path, columns: Mapping[str, object], wanted: str | None, usual: Sequence[str], option: str
) -> str | None:
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


def _read_labels(values: Sequence[object], path: Path, column: str) -> list[int | str]:
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


def _class_index(label: int | str, labels: Mapping[str, int] | None) -> int:
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


def _rank_content(content: bytes, seed: int) -> bytes:
    return hashlib.sha256(b"%d:" % seed + content).digest()


def _split_rows(keys: Sequence[bytes], calibration: int, seed: int) -> tuple[list[int], list[int]]:
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
    chosen = set(sorted(first, key=lambda key: _rank_content(key, seed))[:calibration])
    return sorted(first[key] for key in chosen), [row for row, key in enumerate(keys) if key not in chosen]


def _take_rows(arrays: Arrays, rows: list[int]) -> Arrays:
    labels = tuple(arrays.labels[row] for row in rows) if arrays.labels else ()
    return Arrays(inputs={name: array[rows] for name, array in arrays.inputs.items()}, labels=labels)


def _manual_paragraphs() -> list[str]:
    from pydoc_data.topics import topics

    paragraphs = []
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            text = " ".join(re.sub(r'["*`]', "", block).split())
            # Prose starts with a capital and ends as a sentence does; what is left out is grammar, tables and code.
            prose = re.match(r"(?!Changed in|New in|Added in)[A-Z][a-z]*\b", text) and text.endswith(".")
            if prose and not re.search(r"::=|>>>|\||[{}_]{2}", text):
                paragraphs.append(text)
    return paragraphs


def _cut_pieces(paragraph: str, seed: int) -> list[str]:
    """Cuts a paragraph into pieces of 1, 1, 1, 2, 3 or 4 sentences, of 4 to 120 words."""
    sentences = re.split(r"(?<=[a-z\])][.!?]) (?=[A-Z])", paragraph)
    pieces = []
    while sentences:
        length = (1, 1, 1, 2, 3, 4)[_rank_content(sentences[0].encode(), seed)[0] % 6]
        pieces.append(" ".join(sentences[:length]))
        sentences = sentences[length:]
    return [piece for piece in pieces if 4 <= len(piece.split()) <= 120]
