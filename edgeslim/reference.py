"""The first step of a build: the float graph that everything later is measured against, and the samples that fit it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeslim import export, graph
from edgeslim.core import Feed, Task
from edgeslim.errors import BadInputError
from edgeslim.freeze import freeze_shapes
from edgeslim.images import class_names
from edgeslim.inputs import hash_model
from edgeslim.preprocessing import Preprocessing, resolve_preprocessing
from edgeslim.project import Plan
from edgeslim.samples import Samples, hash_batches, load_samples
from edgeslim.session import open_runner
from edgeslim.signature import InputSpec, check_feed, source_inputs
from edgeslim.source import Source, load_huggingface, load_own
from edgeslim.steps import StepFacts, Steps
from edgeslim.task import (
    Classification,
    FeatureExtraction,
    ImageClassification,
    TextClassification,
    is_classifier,
    is_image_classifier,
)

__all__ = ["class_labels", "export_reference", "folder_bytes"]

COMPARED_SAMPLES = 8


def export_reference(source: Source, task: Task, plan: Plan, steps: Steps) -> tuple[Path, Samples]:
    """The folder of the float graph, compared with its source, and the samples that fit its inputs."""
    classifier = isinstance(task, TextClassification) or (
        not isinstance(task, FeatureExtraction) and is_classifier(source.config)
    )
    images = is_image_classifier(source.config)
    architectures = source.config.get("architectures")
    if classifier and source.kind == "huggingface" and architectures and not is_classifier(source.config):
        raise BadInputError(
            source.spec,
            f"{architectures[0]} has no classification head",
            expected="a model for sequence classification",
            hint="--task feature-extraction takes an encoder as it is",
        )
    own = load_own(source) if source.kind == "module" else None
    taken = source_inputs(source, own, images=images)
    example: Feed | None = None if own is None else {name: value.numpy() for name, value in own.inputs.items()}
    samples = load_samples(
        plan.data,
        base=plan.base,
        tokenizer=source.tokenizer,
        input_names=[item.name for item in taken],
        labels=_label_ids(source, task),
        example=example,
        seed=plan.seed,
        preprocessing=_preprocessing(source, task, taken, plan),
    )
    if source.kind == "onnx":
        for batch in (samples.calibration[0], samples.evaluation[0]):
            check_feed(taken, batch.feed)
    compared = (*samples.calibration[:COMPARED_SAMPLES], *samples.padded)
    opset_max = plan.target.runtime.opset_max
    files = {} if own is not None else hash_model(source)

    def make(folder: Path, scratch: Path) -> StepFacts:
        free = scratch / "free" if plan.export.frozen() else folder
        if own is not None:
            made = export.export_own(own, compared, opset_max=opset_max, folder=free)
        elif source.kind == "onnx":
            assert source.path is not None
            made = export.import_onnx(source.path, compared, folder=free)
        else:
            module: Any = load_huggingface(source, classifier=classifier, images=images)
            made = export.export_huggingface(
                module, compared, classifier=classifier, images=images, opset_max=opset_max, folder=free
            )
            del module
        gc.collect()
        if own is None and hash_model(source) != files:
            raise BadInputError(
                source.spec, "the model changed while it was being read", expected="files that stay as they are"
            )
        frozen = freeze_shapes(made.path, compared, folder) if plan.export.frozen() else {}
        return StepFacts(changed=1, bytes=folder_bytes(folder), metrics={**made.metrics, **frozen}, engine=made.engine)

    inputs = (source.kind, files, opset_max, classifier, plan.export.frozen(), hash_batches(compared))
    folder = steps.run("export", inputs, make, reuse=own is None)
    return folder, samples.restricted(open_runner(folder / graph.MODEL_NAME).inputs)


def class_labels(source: Source, plan: Plan) -> Sequence[str]:
    """The names that the project gives, or else, for pictures, those of the class folders."""
    if plan.labels or plan.task != "image-classification" or "id2label" in source.config:
        return plan.labels
    name = plan.data.file or plan.data.evaluation
    return class_names(plan.base / name) if name else ()


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _preprocessing(source: Source, task: Task, taken: Sequence[InputSpec], plan: Plan) -> Preprocessing | None:
    """What happens to pictures, if the samples are some; arrays are taken as they are."""
    said = bool(plan.preprocessing.given())
    pictures = isinstance(task, ImageClassification) or is_image_classifier(source.config)
    files = (plan.data.file, plan.data.evaluation)
    if not said and not (pictures and any(name is not None and not name.endswith(".npz") for name in files)):
        return None
    return resolve_preprocessing(
        plan.preprocessing,
        shape=taken[0].shape,
        dtype=taken[0].dtype,
        folder=source.path if source.kind == "huggingface" else None,
        config=source.config,
    )


def _label_ids(source: Source, task: Task) -> Mapping[str, int] | None:
    if isinstance(task, Classification) and task.labels:
        return {name: index for index, name in enumerate(task.labels)}
    table = source.config.get("label2id")
    if not isinstance(table, Mapping) or not all(isinstance(value, int) for value in table.values()):
        return None
    return {str(name): int(value) for name, value in table.items()}
