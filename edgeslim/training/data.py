"""What a model is trained on: the project's ``[data] training``, encoded as the calibration data are.

Of its samples ``validation_share`` are split off by content, as calibration is; copies of a sample fall on one side.
A training sample that also stands in the evaluation data is an error: the figures would flatter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeslim.core import Batch, TrainingData
from edgeslim.datasets.arrays import Arrays, batch_arrays, load_arrays, split_arrays
from edgeslim.datasets.data import Example, load_examples, split_rows
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.datasets.images import PIXELS, load_pixels
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.datasets.samples import DataOptions, split_texts
from edgeslim.errors import BadInputError

__all__ = ["hash_training", "load_training"]


def load_training(
    options: DataOptions,
    *,
    base: Path,
    tokenizer: Path | None,
    input_names: Sequence[str],
    labels: Mapping[str, int] | None,
    seed: int,
    preprocessing: Preprocessing | None,
) -> TrainingData | None:
    """The samples of ``options.training``, or ``None`` if it names no file.

    Raises:
        BadInputError: the file can't be used, is too small to split, or shares samples with the evaluation data.
    """
    if options.training is None:
        return None
    path = base / options.training
    if path.suffix != ".npz" and preprocessing is None:
        return _from_texts(options, base, path, tokenizer, input_names, labels, seed)

    def load(name: str) -> Arrays:
        if (base / name).suffix == ".npz" or preprocessing is None:
            return load_arrays(base / name)
        return load_pixels(base / name, preprocessing, labels=labels, label_column=options.label_column)

    arrays = load(options.training)
    if options.file is not None:
        whole = load(options.file)
        count = min(options.calibration_samples, max(1, whole.rows // 2))
        judged = _row_keys(split_arrays(whole, calibration=count, seed=seed)[1])
    else:
        judged = _row_keys(load(options.evaluation)) if options.evaluation else []
    keys = _row_keys(arrays)
    _refuse_shared(path, judged, keys)
    if PIXELS in arrays.inputs and preprocessing is not None:
        pixels = arrays.inputs[PIXELS]
        batches = tuple(
            Batch(
                feed={input_names[0]: preprocessing.normalize(pixels[row : row + 1])},
                rows=1,
                labels=tuple(arrays.labels[row : row + 1]),
            )
            for row in range(arrays.rows)
        )
    else:
        batches = batch_arrays(arrays, input_names)
    return _split(batches, keys, options, seed, {})


def hash_training(data: TrainingData | None) -> str:
    """A SHA-256 over all inputs, labels and the split."""
    digest = hashlib.sha256()
    for part in () if data is None else (data.training, data.validation):
        digest.update(b"part")
        for batch in part:
            digest.update(repr(batch.labels).encode())
            for name, value in sorted(batch.feed.items()):
                digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _from_texts(
    options: DataOptions,
    base: Path,
    path: Path,
    tokenizer: Path | None,
    input_names: Sequence[str],
    labels: Mapping[str, int] | None,
    seed: int,
) -> TrainingData:
    if tokenizer is None:
        raise BadInputError(str(path), "texts, and the model has no tokenizer", expected="an .npz file")
    examples = load_examples(path, text_column=options.text_column, label_column=options.label_column)
    files = [base / name for name in (options.file, options.calibration, options.evaluation) if name is not None]
    evaluation = split_texts(options, base, files, seed)[1] if files else ()
    keys = [_words(example) for example in examples]
    _refuse_shared(path, [_words(example) for example in evaluation], keys)
    loaded = load_tokenizer(tokenizer)
    encoded = encode_examples(
        examples, loaded, input_names, max_length=options.max_length, labels=labels, pad=options.pad
    )
    padding = {"input_ids": int(loaded.pad_token_id)} if loaded.pad_token is not None else {}
    return _split(encoded, keys, options, seed, padding)


def _split(
    batches: Sequence[Batch], keys: Sequence[bytes], options: DataOptions, seed: int, padding: Mapping[str, int]
) -> TrainingData:
    count = max(1, round(options.validation_share * len(set(keys))))
    validation, training = split_rows(keys, count, seed)
    return TrainingData(
        training=tuple(batches[row] for row in training),
        validation=tuple(batches[row] for row in validation),
        padding=padding,
    )


def _refuse_shared(path: Path, evaluation: Sequence[bytes], training: Sequence[bytes]) -> None:
    known = set(evaluation)
    shared = sum(key in known for key in training)
    if shared:
        raise BadInputError(
            str(path),
            f"{shared} of {len(training)} samples are evaluation data, too",
            expected="training data that share nothing with the evaluation data",
            hint="take them out of one of the two files",
        )


def _words(example: Example) -> bytes:
    return " ".join(example.text.split()).casefold().encode()


def _row_keys(arrays: Arrays) -> list[bytes]:
    inputs = [np.ascontiguousarray(arrays.inputs[name]) for name in sorted(arrays.inputs)]
    return [b"".join(array[row].tobytes() for array in inputs) for row in range(arrays.rows)]
