"""The samples of a build: what calibrates, what evaluates, and a warning where one of them is only a stand-in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.core import Batch, Feed
from edgeslim.datasets.arrays import Arrays, batch_arrays, load_arrays, split_arrays
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import Example, load_examples, split_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.datasets.images import PIXELS, PictureFeed, load_pixels
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.errors import BadInputError

__all__ = ["DataOptions", "Samples", "fixed_length_feed", "hash_batches", "load_samples", "split_texts"]

BUILTIN_EVALUATION = 200


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Samples: two files that share nothing, or one ``file`` that is split.

    Of a split file ``calibration_samples`` calibrate and the rest evaluates. Texts are cut at ``max_length`` tokens
    and, with ``pad``, padded to as many. ``training`` is a file that shares nothing with the evaluation data;
    ``validation_share`` of it isn't trained on and decides when to stop. Running text, of a language model, is read in
    windows of ``max_length`` tokens, the next of which begins ``stride`` tokens later, half a window by default.
    """

    calibration: str | None = None
    evaluation: str | None = None
    file: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int = 128
    pad: bool = False
    calibration_samples: int = 128
    training: str | None = None
    validation_share: float = 0.1
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.file is not None and (self.calibration is not None or self.evaluation is not None):
            raise ValueError("file beside calibration or evaluation, expected either one file or two")
        if (self.calibration is None) != (self.evaluation is None):
            raise ValueError("calibration without evaluation or the reverse, expected both, or one file to split")
        for name in ("max_length", "calibration_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.stride is not None and not 0 < self.stride <= self.max_length:
            raise ValueError(f"stride: {self.stride}, expected 1 to max_length")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share: {self.validation_share}, expected more than 0 and less than 1")

    def window_stride(self) -> int:
        """The tokens between the beginnings of two windows."""
        return self.stride or max(1, self.max_length // 2)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``calibration`` and ``evaluation`` share no sample, unless ``judged`` is false.

    Then there was too little data to measure quality with, and a budget for it stays unjudged; ``notes`` say so to the
    reader of a report. ``padded`` is one batch of the shortest and the longest text, where the tokenizer can pad.
    ``preprocessing`` is what was done to pictures, or what is said to have been done to arrays.
    """

    calibration: tuple[Batch, ...]
    evaluation: tuple[Batch, ...]
    padded: tuple[Batch, ...] = ()
    judged: bool = True
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    def restricted(self, names: Sequence[str]) -> Samples:
        """The same samples with the inputs ``names`` alone."""

        def cut(batches: Sequence[Batch]) -> tuple[Batch, ...]:
            return tuple(
                batch
                if set(batch.feed) <= set(names)
                else replace(batch, feed={name: batch.feed[name] for name in names if name in batch.feed})
                for batch in batches
            )

        return replace(
            self, calibration=cut(self.calibration), evaluation=cut(self.evaluation), padded=cut(self.padded)
        )

    def beside(self, original: Samples) -> Samples:
        """The same samples, made by another tokenizer than those of ``original``, whose feeds they carry along."""

        def pair(ours: Sequence[Batch], theirs: Sequence[Batch]) -> tuple[Batch, ...]:
            return tuple(
                replace(mine, original=other.feed if other.original is None else other.original)
                for mine, other in zip(ours, theirs, strict=True)
            )

        return replace(
            self,
            calibration=pair(self.calibration, original.calibration),
            evaluation=pair(self.evaluation, original.evaluation),
            padded=pair(self.padded, original.padded),
        )


def load_samples(
    options: DataOptions,
    *,
    base: Path,
    tokenizer: Path | None,
    input_names: Sequence[str],
    labels: Mapping[str, int] | None,
    example: Feed | None,
    seed: int,
    preprocessing: Preprocessing | None = None,
) -> Samples:
    """Loads what ``options`` name; ``example`` is the source's own input, used where no data was given.

    With ``preprocessing`` the samples are pictures.

    Raises:
        BadInputError: a file can't be used, or there is neither data nor a stand-in.
    """
    files = [base / name for name in (options.file, options.calibration, options.evaluation) if name is not None]
    if any(path.suffix == ".npz" for path in files):
        return replace(_from_arrays(options, base, input_names, seed), preprocessing=preprocessing)
    if files and preprocessing is not None:
        return _from_pictures(options, base, input_names, labels, seed, preprocessing)
    if not files and example is not None:
        batch = Batch(feed=example, rows=int(next(iter(example.values())).shape[0]))
        note = "no data given: calibrated on the model's example inputs; its accuracy is not judged"
        return Samples(calibration=(batch,), evaluation=(batch,), judged=False, notes=(note,))
    folder = next((path for path in files if path.is_dir()), None)
    if folder is not None:
        raise BadInputError(
            str(folder),
            "a folder",
            expected="a file of samples",
            hint='if it holds pictures, task = "image-classification"',
        )
    if preprocessing is not None:
        raise BadInputError(
            "data",
            "no samples",
            expected="a folder of pictures, a .parquet with images, or an .npz",
            hint="--data FOLDER",
        )
    if tokenizer is None:
        raise BadInputError(
            "data",
            "no samples, and the model has no tokenizer"
            if not files
            else f"{files[0].name}, and the model has no tokenizer",
            expected="an .npz file with one array a model input: " + ", ".join(input_names),
            hint="for a text model, put tokenizer.json beside it or name its folder with the key `tokenizer`",
        )
    calibration, evaluation, notes = split_texts(options, base, files, seed)
    loaded = load_tokenizer(tokenizer)

    def encode(examples: Sequence[Example], size: int) -> tuple[Batch, ...]:
        return encode_examples(
            examples,
            loaded,
            input_names,
            max_length=options.max_length,
            batch_size=size,
            labels=labels,
            pad=options.pad,
        )

    unlabelled = [Example(text=example.text) for example in calibration]
    by_length = sorted(unlabelled, key=lambda example: len(example.text))
    padded = encode([by_length[0], by_length[-1]], 2) if loaded.pad_token is not None and not options.pad else ()
    return Samples(calibration=encode(unlabelled, 1), evaluation=encode(evaluation, 1), padded=padded, notes=notes)


def fixed_length_feed(batches: Sequence[Batch], length: int) -> Feed:
    """One sample of ``length`` tokens, made of the batches' own: what latency is measured on.

    Inputs that aren't token sequences are taken from the first batch as they are.
    """
    first = batches[0].feed
    if "input_ids" not in first:
        return {name: value[:1] for name, value in first.items()}
    made: dict[str, Any] = {}
    for name in first:
        if first[name].ndim != 2:  # a KV cache
            made[name] = first[name][:1]
            continue
        tokens = np.concatenate([batch.feed[name][0] for batch in batches])
        made[name] = np.resize(tokens, length)[None].astype(first[name].dtype)
    return made


def hash_batches(batches: Sequence[Batch]) -> str:
    """A SHA-256 over the inputs of all batches, names, types and shapes included."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.feed.items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def split_texts(
    options: DataOptions, base: Path, files: Sequence[Path], seed: int
) -> tuple[Sequence[Example], Sequence[Example], tuple[str, ...]]:
    """The texts that calibrate, those that evaluate, and notes on them; ``files`` is empty where none was named.

    Raises:
        BadInputError: a file can't be read, or the two share a text.
    """

    def load(path: Path) -> tuple[Example, ...]:
        return load_examples(path, text_column=options.text_column, label_column=options.label_column)

    if options.calibration is not None and options.evaluation is not None:
        calibration = load(base / options.calibration)
        evaluation = load(base / options.evaluation)
        evaluated = {_words(example) for example in evaluation}
        shared = [example.text for example in calibration if _words(example) in evaluated]
        if shared:
            raise _overlap(options, f"{len(shared)} texts stand in both, the first is {shared[0][:60]!r}")
        return calibration, evaluation, ()
    count = options.calibration_samples
    if files:
        examples = load(files[0])
        count = min(count, max(1, len(examples) // 2))
        return *split_examples(examples, calibration=count, seed=seed), ()
    note = "no data given: calibrated and evaluated on English from Python's own manual, not on your text (--data FILE)"
    examples = builtin_text(count + BUILTIN_EVALUATION, seed)
    return *split_examples(examples, calibration=count, seed=seed), (note,)


def _from_arrays(options: DataOptions, base: Path, input_names: Sequence[str], seed: int) -> Samples:
    if options.file is not None:
        arrays = load_arrays(base / options.file)
        count = min(options.calibration_samples, max(1, arrays.rows // 2))
        calibration, evaluation = split_arrays(arrays, calibration=count, seed=seed)
    else:
        calibration, evaluation = (load_arrays(base / str(name)) for name in (options.calibration, options.evaluation))
        shared = _rows(calibration) & _rows(evaluation)
        if shared:
            raise _overlap(options, f"{len(shared)} samples stand in both")
    return Samples(calibration=batch_arrays(calibration, input_names), evaluation=batch_arrays(evaluation, input_names))


def _from_pictures(
    options: DataOptions,
    base: Path,
    input_names: Sequence[str],
    labels: Mapping[str, int] | None,
    seed: int,
    preprocessing: Preprocessing,
) -> Samples:
    if len(input_names) != 1:
        raise BadInputError(
            "data",
            "pictures, and a model with the inputs " + ", ".join(input_names),
            expected="a model with one input",
            hint="give an .npz file with one array a model input",
        )

    def load(name: str, classes: str | None) -> Arrays:
        return load_pixels(base / name, preprocessing, labels=labels, label_column=classes)

    if options.file is not None:
        pixels = load(options.file, options.label_column)
        count = min(options.calibration_samples, max(1, pixels.rows // 2))
        calibration, evaluation = split_arrays(pixels, calibration=count, seed=seed)
    else:
        calibration, evaluation = (
            load(str(name), options.label_column) for name in (options.calibration, options.evaluation)
        )
        shared = _rows(calibration) & _rows(evaluation)
        if shared:
            raise _overlap(options, f"{len(shared)} pictures stand in both")

    def batches(arrays: Arrays, classes: Sequence[int]) -> tuple[Batch, ...]:
        return tuple(
            Batch(
                feed=PictureFeed(input_names[0], arrays.inputs[PIXELS][row : row + 1], preprocessing),
                rows=1,
                labels=tuple(classes[row : row + 1]),
            )
            for row in range(arrays.rows)
        )

    return Samples(
        calibration=batches(calibration, ()),
        evaluation=batches(evaluation, evaluation.labels),
        preprocessing=preprocessing,
    )


def _words(example: Example) -> str:
    """A text as a split compares it: case and white space don't make another sample of it."""
    return " ".join(example.text.split()).casefold()


def _rows(arrays: Arrays) -> set[bytes]:
    inputs = [arrays.inputs[name] for name in sorted(arrays.inputs)]
    return {b"".join(array[row].tobytes() for array in inputs) for row in range(arrays.rows)}


def _overlap(options: DataOptions, got: str) -> BadInputError:
    return BadInputError(
        f"{options.calibration}, {options.evaluation}",
        got,
        expected="calibration and evaluation data that share nothing",
        hint="`file` instead of two files is split without overlap",
    )
