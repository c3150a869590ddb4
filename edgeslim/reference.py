"""The first step of a build: the float graph that everything later is measured against, and the samples that fit it.

A torch model that stages have changed is exported in the same way as the original (``export_changed``).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslim import export
from edgeslim.core import Batch, Feed, Task, TrainingData
from edgeslim.datasets.images import class_names
from edgeslim.datasets.preprocessing import Preprocessing, resolve_preprocessing
from edgeslim.datasets.samples import Samples, hash_batches, load_samples
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.language_source import (
    empty_inputs,
    export_decoder,
    load_training_windows,
    load_windows,
    open_checkpoint,
)
from edgeslim.decoders.torch_decoder import ModuleCheckpoint, make_module
from edgeslim.errors import BadInputError
from edgeslim.graphs import graph
from edgeslim.graphs.freeze import freeze_shapes
from edgeslim.inputs import hash_model
from edgeslim.project import Plan
from edgeslim.session import open_runner
from edgeslim.signature import InputSpec, check_feed, source_inputs
from edgeslim.source import OwnModel, Source, load_huggingface, load_own
from edgeslim.steps import StepFacts, Steps
from edgeslim.task import (
    CausalLM,
    Classification,
    FeatureExtraction,
    ImageClassification,
    TextClassification,
    is_classifier,
    is_image_classifier,
)
from edgeslim.training.data import load_training

if TYPE_CHECKING:
    from edgeslim.training.torch_model import TorchModel

__all__ = [
    "Reference",
    "class_labels",
    "export_changed",
    "export_reference",
    "graph_bytes",
    "load_original",
    "retokenize",
    "text_tokenizer",
    "training_samples",
]

COMPARED_SAMPLES = 8
COMPARED_WINDOWS = 2


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The float graph in ``folder``, the samples that fit its inputs, and what it takes to load its source again.

    ``compared`` are the samples that an export is compared with its source on; ``taken`` are the source's own inputs.
    Of a language model ``checkpoint`` has the weights.
    """

    folder: Path
    samples: Samples
    source: Source
    compared: tuple[Batch, ...]
    taken: tuple[InputSpec, ...]
    labels: Mapping[str, int] | None
    classifier: bool
    images: bool
    own: OwnModel | None
    checkpoint: Checkpoint | None = None


def export_reference(source: Source, task: Task, plan: Plan, steps: Steps) -> Reference:
    """The folder of the float graph, compared with its source, and the samples that fit its inputs."""
    if isinstance(task, CausalLM):
        return _export_decoder(source, plan, steps)
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
    labels = _label_ids(source, task)
    example: Feed | None = None if own is None else {name: value.numpy() for name, value in own.inputs.items()}
    samples = load_samples(
        plan.data,
        base=plan.base,
        tokenizer=source.tokenizer,
        input_names=[item.name for item in taken],
        labels=labels,
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
        return StepFacts(changed=1, bytes=graph_bytes(folder), metrics={**made.metrics, **frozen}, engine=made.engine)

    inputs = (source.kind, files, opset_max, classifier, plan.export.frozen(), hash_batches(compared))
    folder = steps.run("export", inputs, make, reuse=own is None)
    return Reference(
        folder=folder,
        samples=samples.restricted(open_runner(folder / graph.MODEL_NAME).inputs),
        source=source,
        compared=compared,
        taken=tuple(taken),
        labels=labels,
        classifier=classifier,
        images=images,
        own=own,
    )


def _export_decoder(source: Source, plan: Plan, steps: Steps) -> Reference:
    """The same for a language model: windows of running text, and the graph written from its checkpoint."""
    assert source.tokenizer is not None
    checkpoint = open_checkpoint(source)
    empty = empty_inputs(checkpoint.shape)
    samples = load_windows(plan.data, plan.base, source.tokenizer, empty, seed=plan.seed)
    compared = samples.calibration[:COMPARED_WINDOWS]
    files = hash_model(source)

    def make(folder: Path, scratch: Path) -> StepFacts:  # noqa: ARG001
        made = export_decoder(checkpoint, compared, folder)
        gc.collect()
        return StepFacts(changed=1, bytes=graph_bytes(folder), metrics=made.metrics, engine=made.engine)

    return Reference(
        folder=steps.run("export", (source.kind, files, hash_batches(compared)), make),
        samples=samples,
        source=source,
        compared=compared,
        taken=tuple(InputSpec(name=name) for name in ("input_ids", *empty)),
        labels=None,
        classifier=False,
        images=False,
        own=None,
        checkpoint=checkpoint,
    )


def retokenize(reference: Reference, plan: Plan, tokenizer: Path) -> Samples:
    """The samples of ``reference`` as another tokenizer has them, each beside what the float original takes of it."""
    made = load_samples(
        plan.data,
        base=plan.base,
        tokenizer=tokenizer,
        input_names=[item.name for item in reference.taken],
        labels=reference.labels,
        example=None,
        seed=plan.seed,
    )
    return made.restricted(list(reference.samples.calibration[0].feed)).beside(reference.samples)


def text_tokenizer(reference: Reference, plan: Plan) -> Path | None:
    """The folder of the tokenizer that made the samples, where they were made of texts."""
    data = plan.data
    arrays = any(str(name).endswith(".npz") for name in (data.file, data.calibration, data.evaluation))
    other = reference.images or reference.own is not None or reference.checkpoint is not None
    return None if arrays or other else reference.source.tokenizer


def load_original(reference: Reference) -> TorchModel:
    """The source's torch model in eval mode: read anew, or the very one that own code made."""
    from edgeslim.training.torch_model import TorchModel  # not above: ONNX files are built without torch

    if reference.checkpoint is not None:
        return TorchModel(module=make_module(reference.checkpoint), output="logits")
    output = "logits" if reference.classifier or reference.images else "last_hidden_state"
    if reference.own is not None:
        return TorchModel(module=reference.own.module)
    module: Any = load_huggingface(reference.source, classifier=reference.classifier, images=reference.images)
    if output == "last_hidden_state" and getattr(module, "pooler", None) is not None:
        module.pooler = None  # nothing reads it: it isn't in the graph, and has nothing to be trained with
    return TorchModel(module=module, output=output)


def training_samples(reference: Reference, plan: Plan) -> TrainingData | None:
    """What stages on the torch model train on, or ``None`` where the project names nothing."""
    if reference.checkpoint is not None:
        assert reference.source.tokenizer is not None
        return load_training_windows(plan.data, plan.base, reference.source.tokenizer, seed=plan.seed)
    data = load_training(
        plan.data,
        base=plan.base,
        tokenizer=reference.source.tokenizer,
        input_names=[item.name for item in reference.taken],
        labels=reference.labels,
        seed=plan.seed,
        preprocessing=reference.samples.preprocessing,
    )
    known = set(reference.samples.calibration[0].feed)

    def cut(batches: Sequence[Batch]) -> tuple[Batch, ...]:
        return tuple(
            replace(batch, feed={name: value for name, value in batch.feed.items() if name in known})
            for batch in batches
        )

    return None if data is None else replace(data, training=cut(data.training), validation=cut(data.validation))


def export_changed(model: TorchModel, reference: Reference, plan: Plan, folder: Path, scratch: Path) -> export.Export:
    """Exports what stages made of the original into ``folder``, and compares the two.

    Raises:
        BadInputError: it can't be expressed as a graph.
        CheckError: the graph computes something else.
    """
    if reference.checkpoint is not None:
        return export_decoder(ModuleCheckpoint(model.module), reference.compared, folder)
    opset_max = plan.target.runtime.opset_max
    free = scratch / "free" if plan.export.frozen() else folder
    if reference.own is not None:
        own = replace(reference.own, module=model.module)
        made = export.export_own(own, reference.compared, opset_max=opset_max, folder=free)
    else:
        made = export.export_huggingface(
            model.module,
            reference.compared,
            classifier=reference.classifier,
            images=reference.images,
            opset_max=opset_max,
            folder=free,
        )
    if plan.export.frozen():
        freeze_shapes(made.path, reference.compared, folder)
    return made


def class_labels(source: Source, plan: Plan) -> Sequence[str]:
    """The names that the project gives, or else, for pictures, those of the class folders."""
    if plan.labels or plan.task != "image-classification" or "id2label" in source.config:
        return plan.labels
    name = plan.data.file or plan.data.evaluation
    return class_names(plan.base / name) if name else ()


def graph_bytes(folder: Path) -> int:
    """The size of a graph and its weights; a torch model's own files may lie beside them."""
    return sum((folder / name).stat().st_size for name in (graph.MODEL_NAME, graph.WEIGHTS_NAME))


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
