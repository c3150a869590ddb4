"""What a package is checked with, made of its manifest and, where there is any, data: the task, samples, a feed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeslim import task as tasks
from edgeslim.core import Batch, Feed, Task
from edgeslim.datasets.arrays import batch_arrays, load_arrays
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.datasets.images import PIXELS, load_pixels
from edgeslim.datasets.preprocessing import Preprocessing, PreprocessingOptions
from edgeslim.datasets.samples import DataOptions, Samples, hash_batches, load_samples
from edgeslim.decoders.generation import empty_cache
from edgeslim.decoders.language_source import load_windows
from edgeslim.errors import BadInputError, UsageError
from edgeslim.fields import parse_fields
from edgeslim.packaging.manifest import Manifest

__all__ = ["data_options", "evaluation_samples", "example_feed", "manifest_task", "preprocessing_options"]

EXAMPLE_LENGTH = 128
MAX_EXAMPLE_VALUES = 1 << 26
_TYPES = {"float": "float32", "double": "float64", "int8": "int8", "uint8": "uint8", "bool": "bool"}


def manifest_task(manifest: Manifest, where: str, own: str | None) -> Task | None:
    """The task that a manifest describes, or ``own``, a metric of one's own.

    A metric that the manifest names is code: it is run only if the user names it too, and else this is ``None``.

    Raises:
        BadInputError: an unknown task, or one with settings that this edgeslim doesn't know.
        UsageError: ``own`` isn't ``module:function``.
    """
    if own is not None:
        if ":" not in own:
            raise UsageError("--task", f"{own!r}", expected="module:function, instead of what the package says")
        return tasks.resolve_task(own)
    table = dict(manifest.task)
    name = table.pop("task", None)
    if name == "custom":
        return None
    known = {
        cast(Any, kind).name: kind
        for kind in vars(tasks).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(getattr(kind, "name", None), str)
    }
    where = f"{where}: manifest.json: task"
    if not isinstance(name, str) or name not in known:
        raise BadInputError(
            where, f"{name!r}", expected="one of " + ", ".join(sorted(known)), hint="a newer edgeslim may know it"
        )
    return cast(Task, parse_fields(known[name], table, where))


def data_options(manifest: Manifest, data: str | None) -> DataOptions:
    """How a build of this package would have read and split ``data``."""
    return DataOptions(
        file=None if data is None else str(Path(data).absolute()),
        max_length=manifest.tokenizer.max_length if manifest.tokenizer else EXAMPLE_LENGTH,
        pad=manifest.tokenizer is not None and manifest.tokenizer.pad,
        calibration_samples=max(1, manifest.calibration.samples) if manifest.calibration else 128,
    )


def evaluation_samples(
    manifest: Manifest,
    task: Task | None,
    data: str | None,
    tokenizer: Path | None,
    names: Sequence[str],
    example: Feed | None,
) -> Samples:
    """What the package is evaluated on: all of ``data``, but no sample that the manifest says it was calibrated on.

    A file that the build itself split is told by the hash of its calibration samples; then the rest evaluates, as
    it did in the build. Without data it is English that Python brings or, without a tokenizer, ``example``.

    Raises:
        BadInputError: the data can't be used with this package.
    """
    if isinstance(task, tasks.CausalLM):
        return _evaluation_windows(manifest, task, data, tokenizer)
    labels = manifest.task.get("labels")
    table = {str(name): index for index, name in enumerate(labels)} if isinstance(labels, list) and labels else None
    options = data_options(manifest, data)
    preprocessing = task.preprocessing if isinstance(task, tasks.ImageClassification) else None
    entry = manifest.calibration

    def split() -> Samples:
        return load_samples(
            options,
            base=Path(),
            tokenizer=tokenizer,
            input_names=names,
            labels=table,
            example=None if tokenizer else example,
            seed=entry.seed if entry else 0,
            preprocessing=preprocessing,
        )

    if data is None:
        what = "on English that Python brings" if tokenizer else "on one made-up input"
        return dataclasses.replace(split(), notes=(f"no data given: run {what} (--data FILE)",))
    path = Path(data)
    if preprocessing is not None and path.suffix != ".npz":
        whole = _load_pictures(path, preprocessing, names, table)
    else:
        whole = _load_whole(path, options, tokenizer, names, table)
    if entry is not None:
        with contextlib.suppress(BadInputError):  # too few samples to split are no reason to refuse them
            samples = split()
            if hash_batches(samples.calibration) == entry.sha256:
                note = f"{data} is what the build split: evaluated on the part that it held out"
                return dataclasses.replace(samples, notes=(note,))
    return Samples(calibration=(), evaluation=whole)


def _evaluation_windows(manifest: Manifest, task: tasks.CausalLM, data: str | None, tokenizer: Path | None) -> Samples:
    """Windows of running text: all of ``data``, or Python's manual."""
    if tokenizer is None:
        raise BadInputError("package", "a language model without a tokenizer", expected="one that edgeslim built")
    inputs = manifest.signature.get("inputs")
    cache = empty_cache(
        [dict(item) for item in inputs if isinstance(item, Mapping)] if isinstance(inputs, list) else []
    )
    empty = {name: value[:, :, :0].astype(np.float32) for name, value in cache.items()}
    options = dataclasses.replace(data_options(manifest, data), stride=task.stride)
    if data is None:
        return load_windows(options, Path(), tokenizer, empty, seed=0)
    whole = dataclasses.replace(options, file=None, calibration=options.file, evaluation=options.file)
    return dataclasses.replace(load_windows(whole, Path(), tokenizer, empty, seed=0), calibration=())


def example_feed(manifest: Manifest) -> Feed | None:
    """One made-up input that fits the manifest's signature: small floats, zeros for whole numbers.

    ``None`` where the signature says too little, or asks for too much.
    """
    inputs = manifest.signature.get("inputs")
    feed: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    for item in inputs if isinstance(inputs, list) else []:
        shape = item.get("shape") if isinstance(item, Mapping) else None
        if not isinstance(shape, list):
            return None
        # The first free dimension is the batch, others are lengths.
        sizes = [dim or (EXAMPLE_LENGTH if axis else 1) for axis, dim in enumerate(shape)]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) > MAX_EXAMPLE_VALUES:
            return None
        kind = str(item.get("type")).removeprefix("tensor(").removesuffix(")")
        try:
            dtype = np.dtype(_TYPES.get(kind, kind))
        except TypeError:
            return None
        values = generator.normal(0, 1, sizes) if dtype.kind == "f" else np.zeros(sizes)
        feed[str(item.get("name"))] = values.astype(dtype)
    return feed or None


def preprocessing_options(task: Task) -> PreprocessingOptions:
    """What a project file would say for a build of the same package."""
    table = task.preprocessing if isinstance(task, tasks.ImageClassification) else None
    return PreprocessingOptions() if table is None else PreprocessingOptions(**dataclasses.asdict(table))


def _load_pictures(
    path: Path, preprocessing: Preprocessing, names: Sequence[str], labels: Mapping[str, int] | None
) -> tuple[Batch, ...]:
    if len(names) != 1:
        raise BadInputError(
            "--data",
            "pictures, and a model with the inputs " + ", ".join(names),
            expected="an .npz file with one array a model input",
        )
    pixels = load_pixels(path, preprocessing, labels=labels)
    return tuple(
        Batch(
            feed={names[0]: preprocessing.normalize(pixels.inputs[PIXELS][row : row + 1])},
            rows=1,
            labels=tuple(pixels.labels[row : row + 1]),
        )
        for row in range(pixels.rows)
    )


def _load_whole(
    path: Path,
    options: DataOptions,
    tokenizer: Path | None,
    names: Sequence[str],
    labels: Mapping[str, int] | None,
) -> tuple[Batch, ...]:
    if path.suffix == ".npz":
        return batch_arrays(load_arrays(path), names)
    if tokenizer is None:
        raise BadInputError(
            "--data",
            f"{path.name}, and the package has no tokenizer",
            expected="an .npz file with one array a model input: " + ", ".join(names),
        )
    loaded = load_tokenizer(tokenizer)
    examples = load_examples(path)
    return encode_examples(examples, loaded, names, max_length=options.max_length, labels=labels, pad=options.pad)
