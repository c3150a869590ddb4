"""Samples of models without a tokenizer: arrays by input name, from ``.npz`` files, samples along the first axis."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.core import Batch
from edgeslim.datasets.data import split_rows
from edgeslim.errors import BadInputError

__all__ = ["Arrays", "batch_arrays", "load_arrays", "split_arrays"]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Samples of a model without a tokenizer: each input an array ``[N, ...]``, and a class index a sample or none."""

    inputs: Mapping[str, np.ndarray[Any, Any]]
    labels: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))


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
        broken = int(np.isnan(array.reshape(len(array), -1)).any(axis=1).sum()) if array.dtype.kind == "f" else 0
        if broken:
            raise BadInputError(f"{path}: {name}", f"NaN in {broken} of {len(array)} samples", expected="finite values")
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
    chosen, rest = split_rows(keys, calibration, seed)
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


def _take_rows(arrays: Arrays, rows: list[int]) -> Arrays:
    labels = tuple(arrays.labels[row] for row in rows) if arrays.labels else ()
    return Arrays(inputs={name: array[rows] for name, array in arrays.inputs.items()}, labels=labels)
