"""Runs the stages of a recipe, those on the torch model first, each as a step that is done once for its inputs.

Every stage ends in a graph on disk, so that sizes, latency and quality are measured in one way (``stage_cost``). A
stage on the torch model is exported, and the export compared with it; beside the graph its step keeps the model itself
(``torch_model``), from which the next one goes on. Where several processes train together, each runs the torch stages
anew, since all must take part or none; ``assist_build`` is what all but the first do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeslim.cache import Cache, hash_file
from edgeslim.core import Batch, Context, Quiet, StepResult, Task
from edgeslim.datasets.samples import hash_batches
from edgeslim.decoders.language_source import complete_task
from edgeslim.decoders.torch_decoder import ModuleCheckpoint
from edgeslim.errors import BadInputError, CheckError
from edgeslim.graphs import graph
from edgeslim.graphs.graph import constant_array
from edgeslim.inputs import hash_model, recipe_files, versions
from edgeslim.language_task import CausalLM
from edgeslim.packaging.bundle import tokenizer_extras
from edgeslim.pooling import pooling_from_folder
from edgeslim.processes import process_count, process_rank
from edgeslim.project import Plan
from edgeslim.recipe import NamedStage
from edgeslim.reference import (
    Reference,
    class_labels,
    export_changed,
    export_reference,
    graph_bytes,
    load_original,
    retokenize,
    text_tokenizer,
    training_samples,
)
from edgeslim.session import open_runner
from edgeslim.source import Source, resolve_source
from edgeslim.stage_cost import measure_stage
from edgeslim.steps import StepFacts, Steps, hash_folder
from edgeslim.task import resolve_task
from edgeslim.training.data import hash_training

if TYPE_CHECKING:
    from edgeslim.training.masks import Masks
    from edgeslim.training.torch_model import TorchModel

__all__ = ["assist_build", "check_source", "run_stages"]

TOKENIZER = "tokenizer"


def check_source(source: Source, plan: Plan, task: Task) -> None:
    """Refuses a file without a torch model of it for a recipe with stages on one; a language model's can be made.

    Raises:
        BadInputError: the source can't be trained.
    """
    kinds = {"onnx": "an ONNX file"} | ({} if isinstance(task, CausalLM) else {"gguf": "a GGUF file"})
    if plan.recipe.torch and source.kind in kinds:
        torch = [named.name for named in plan.recipe.torch if named.level == "torch"]
        name = torch[0] if torch else plan.recipe.torch[0].name
        raise BadInputError(
            source.spec,
            f"{kinds[source.kind]}, and {name} works on a torch model",
            expected="a Hugging Face folder or id, or module:callable",
            hint=f"take {name} out of the recipe, or build from the model that the file was exported from",
        )


def run_stages(
    reference: Reference, plan: Plan, context: Context, steps: Steps, cache: Cache | None
) -> tuple[Path, Path | None]:
    """The folder of the graph after the recipe's stages, and that of its tokenizer where it isn't the source's."""
    folder, tokenizer = reference.folder, None
    context = replace(context, tokenizer=text_tokenizer(reference, plan), folder=plan.base)
    if plan.recipe.torch:
        folder, changed = _run_torch_stages(reference, plan, context, steps, cache)
        if changed is not None:
            context = replace(context, checkpoint=ModuleCheckpoint(changed.module))
    for named in plan.recipe.graph:
        folder = _run_graph_stage(named, folder, reference, plan, context, steps, cache)
        if (folder / TOKENIZER).is_dir():
            tokenizer = folder / TOKENIZER
            calibration = retokenize(reference, plan, tokenizer).calibration
            context = replace(context, calibration=calibration, tokenizer=tokenizer)
    return folder, tokenizer


def assist_build(plan: Plan, cache: Cache | None) -> None:
    """What all processes but the first do: the torch stages of ``plan``, and nothing with their results."""
    if not plan.recipe.torch:
        return
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    pooling = pooling_from_folder(source.path) if source.kind == "huggingface" and source.path else None
    task = resolve_task(
        plan.task, config=source.config, labels=class_labels(source, plan), pooling=pooling, folder=plan.base
    )
    check_source(source, plan, task)
    if isinstance(task, CausalLM):
        task = complete_task(task, source, plan.data)
    progress = Quiet()
    with tempfile.TemporaryDirectory(prefix="edgeslim-assist-") as name:
        steps = Steps(Path(name), None, versions(), progress)
        reference = export_reference(source, task, plan, steps)
        context = Context(
            target=plan.target,
            task=task,
            calibration=reference.samples.calibration,
            reference=open_runner(reference.folder / graph.MODEL_NAME),
            seed=plan.seed,
            work_dir=Path(name),
            progress=progress,
        )
        _run_torch_stages(reference, plan, context, steps, cache)


def _run_graph_stage(
    named: NamedStage,
    before: Path,
    reference: Reference,
    plan: Plan,
    context: Context,
    steps: Steps,
    cache: Cache | None,
) -> Path:
    """The folder of the graph after one stage; a tokenizer that it made lies beside the graph."""
    known = steps.records[-1].after
    if getattr(named.stage, "trains", False):
        context = replace(context, training=training_samples(reference, plan))

    def make(folder: Path, scratch: Path) -> StepFacts:
        model = graph.load_graph(before / graph.MODEL_NAME)
        result = named.stage.run(model, replace(context, work_dir=scratch, checkpoints=checkpoints))
        graph.save_graph(result.model, folder)
        calibration = None
        if result.tokenizer is not None:
            shutil.copytree(result.tokenizer, folder / TOKENIZER)
            calibration = retokenize(reference, plan, folder / TOKENIZER).calibration
        return _facts(result, before, folder, context, scratch, known, calibration)

    target = context.target
    inputs = (
        {
            name: digest
            for name, digest in hash_folder(before).items()
            if name in (graph.MODEL_NAME, graph.WEIGHTS_NAME)
        },
        hash_folder(reference.folder),
        dict(context.task.manifest()),
        named.name,
        repr(named.stage),
        asdict(target.machine),
        asdict(target.runtime),
        hash_batches(context.calibration),
        context.seed,
        context.goal_bytes,
        {str(path): hash_file(path) for path in recipe_files(plan) if path.is_file()},
        {name: hash_file(path) for name, path in tokenizer_extras(context.tokenizer)},
        hash_training(context.training),
    )
    checkpoints = None if cache is None else cache.checkpoints(steps.key(named.name, inputs))
    folder = steps.run(named.name, inputs, make)
    if checkpoints is not None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return folder


def _run_torch_stages(
    reference: Reference, plan: Plan, context: Context, steps: Steps, cache: Cache | None
) -> tuple[Path, TorchModel | None]:
    """The folder of the graph, and of the torch model, after the stages on the torch model.

    A language model itself comes along, since stages on its graph write it anew.
    """
    from edgeslim.training.masks import check_masks
    from edgeslim.training.torch_model import load_model, save_model

    training = training_samples(reference, plan)
    context = replace(context, training=training)
    data = hash_training(training)
    original = load_original(reference).frozen()
    folder, first = reference.folder, process_rank() == 0
    model: TorchModel | None = None
    for named in plan.recipe.torch:
        before, known = folder, steps.records[-1].after
        inputs = (
            hash_model(reference.source) if reference.own is None else {},
            hash_folder(before),
            dict(context.task.manifest()),
            named.name,
            repr(named.stage),
            hash_batches(context.calibration),
            data,
            plan.export.frozen(),
            asdict(plan.target.runtime),
            context.seed,
            context.goal_bytes,
        )
        checkpoints = None if cache is None else cache.checkpoints(steps.key(named.name, inputs))

        def make(folder: Path, scratch: Path) -> StepFacts:
            nonlocal model
            start = model or (original if before == reference.folder else load_model(original, before))  # noqa: B023
            stage_context = replace(context, work_dir=scratch, teacher=original, checkpoints=checkpoints)  # noqa: B023
            start = start.copied()
            start.module.requires_grad_(requires_grad=True)
            result = named.stage.run(start, stage_context)  # noqa: B023
            model = result.model.frozen()
            check_masks(model.module, start.masks, model.masks, named.name)  # noqa: B023
            if not first:
                folder.mkdir()
                return StepFacts(changed=result.changed)
            export_changed(model, reference, plan, folder, scratch)
            _check_zeros(folder, model.masks)
            save_model(model, folder)
            if checkpoints is not None:  # noqa: B023
                shutil.rmtree(checkpoints, ignore_errors=True)  # noqa: B023
            return _facts(result, before, folder, stage_context, scratch, known)  # noqa: B023

        model_before = model
        folder = steps.run(named.name, inputs, make, reuse=reference.own is None and process_count() == 1)
        if model is model_before:  # it came from the cache
            model = None
    if reference.checkpoint is None:
        return folder, None
    return folder, model or load_model(original, folder)


def _facts(
    result: StepResult[object],
    before: Path,
    folder: Path,
    context: Context,
    scratch: Path,
    known: Mapping[str, float],
    calibration: Sequence[Batch] | None = None,
) -> StepFacts:
    cost = measure_stage(before, folder, context, scratch, known, calibration)
    return StepFacts(
        changed=result.changed,
        bytes=graph_bytes(folder),
        skipped=result.skipped,
        metrics=result.metrics,
        before=cost.before,
        after=cost.after,
        unchanged=cost.unchanged,
        measured_on=cost.measured_on,
    )


def _check_zeros(folder: Path, masks: Masks) -> None:
    """Sees that each pruned tensor is in the graph, by its size and at least as many zeros.

    Raises:
        CheckError: the export filled zeros.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for mask in masks.values():
        wanted[mask.numel()].append(int((~mask).sum()))
    found: dict[int, list[int]] = defaultdict(list)
    for value in graph.load_graph(folder / graph.MODEL_NAME).graph.initializers.values():
        array = constant_array(value)
        if array is not None and array.size in wanted:
            found[array.size].append(int(array.size - np.count_nonzero(array)))
    for size, zeros in wanted.items():
        there, pruned = sorted(found[size], reverse=True), sorted(zeros, reverse=True)
        filled = any(count > present for count, present in zip(pruned, there, strict=False))
        if len(there) < len(pruned) or filled:
            raise CheckError(
                "export",
                f"of the tensors with {size:,} weights the graph's have {there} zeros",
                expected=f"at least the {pruned} that were pruned",
            )
