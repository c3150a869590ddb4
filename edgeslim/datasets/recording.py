"""What the float model said of a few evaluation samples, kept in the package.

So a finished package can be checked without the model that it was built from: whoever has the evaluation data compares
the package's outputs with these. Kept is what the task compares (a text's pooled vector, a sample's logits) in float16,
of at most 64 samples and 256 KiB, under the hash of each sample's inputs; the samples themselves are not kept.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Feed, Runner, Task
from edgeslim.datasets.samples import hash_batches
from edgeslim.errors import BadInputError
from edgeslim.task import Classification, FeatureExtraction

__all__ = ["RECORDING_NAME", "Recording", "load_recording", "record_outputs"]

RECORDING_NAME = "reference.npz"
MAX_SAMPLES = 64
MAX_BYTES = 256 << 10
LEAST_SAMPLES = 3
MAX_FILE_BYTES = 1 << 20
_KEYS = ("keys", "output", "values")


class Recording:
    """The float model as far as it was recorded: a ``Runner`` for the samples that ``knows`` accepts."""

    def __init__(self, output: str, values: dict[str, npt.NDArray[Any]]) -> None:
        self._output = output
        self._values = values

    def knows(self, batch: Batch) -> bool:
        """Whether the outputs for exactly these inputs were recorded."""
        return hash_batches((batch,)) in self._values

    def __call__(self, feed: Feed) -> Feed:
        """The recorded output, float32 [1, width]."""
        return {self._output: self._values[hash_batches((Batch(feed=feed, rows=1),))][None].astype(np.float32)}


def record_outputs(reference: Runner, batches: Sequence[Batch], task: Task, path: Path) -> bool:
    """Writes the recording of the first single-sample ``batches`` to ``path``; the same inputs give the same bytes.

    Returns whether there is one: a metric of one's own compares what it likes, and very wide outputs are not kept.
    """
    if not isinstance(task, FeatureExtraction | Classification):
        return False
    kept: dict[str, npt.NDArray[np.float16]] = {}
    output, width = "", 0
    for batch in batches:
        if batch.rows != 1:
            continue
        other = batch.for_original()
        output, vectors = task.compared(reference(other.feed), other)
        if width and vectors.shape[1] != width:
            return False
        width = vectors.shape[1]
        if len(kept) >= min(MAX_SAMPLES, MAX_BYTES // (2 * width)):
            break
        kept[hash_batches((batch,))] = vectors[0].astype(np.float16)
    if len(kept) < LEAST_SAMPLES or not all(np.isfinite(value).all() for value in kept.values()):
        return False
    with path.open("xb") as stream:
        np.savez(stream, keys=np.array(list(kept)), output=np.array(output), values=np.stack(list(kept.values())))
    return True


def load_recording(path: Path) -> Recording:
    """Reads a recording, which anybody may have written.

    Raises:
        BadInputError: it isn't what ``record_outputs`` writes.
    """
    expected = f"a recording of the float model's outputs of at most {MAX_FILE_BYTES:,} bytes"
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInputError(str(path), f"{path.stat().st_size:,} bytes", expected=expected)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys, output, values = (archive[name] for name in _KEYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInputError(str(path), f"it can't be read: {error}", expected=expected) from error
    sound = (
        keys.ndim == 1
        and keys.dtype.kind == "U"
        and output.ndim == 0
        and output.dtype.kind == "U"
        and values.dtype == np.float16
        and values.ndim == 2
        and len(keys) == len(values) <= MAX_SAMPLES
        and bool(np.isfinite(values).all())
    )
    if not sound:
        raise BadInputError(
            str(path), f"keys {keys.dtype} {keys.shape}, values {values.dtype} {values.shape}", expected=expected
        )
    return Recording(str(output), dict(zip((str(key) for key in keys), values, strict=True)))
