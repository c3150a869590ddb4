"""What ``edgeslim inspect --sensitivity`` measures on: a float graph and samples, or only the tensors of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeslim.anatomy import open_model
from edgeslim.core import Budget, Progress
from edgeslim.graphs.graph import MODEL_NAME
from edgeslim.inputs import versions
from edgeslim.pooling import pooling_from_folder
from edgeslim.project import AndroidOptions, DataOptions, Plan
from edgeslim.quantizing.sensitivity import Sensitivity, measure_graph, measure_stored
from edgeslim.recipe import Recipe
from edgeslim.reference import class_labels, export_reference
from edgeslim.source import resolve_source
from edgeslim.steps import Steps
from edgeslim.target import list_targets
from edgeslim.task import resolve_task

__all__ = ["measure_sensitivity"]


def measure_sensitivity(model: str, *, data: str | None, task: str | None, progress: Progress) -> Sensitivity:
    """Measures ``model``; with ``data`` on its calibration half, so that evaluation data stays unseen.

    Raises:
        BadInputError: there is no such model, it has no float weights, or the data doesn't fit it.
    """
    if data is None:
        with open_model(model) as (path, found):
            if path.suffix == ".onnx":
                with tempfile.TemporaryDirectory() as folder:
                    tensors = measure_graph(path, (), Path(folder), seed=0, progress=progress)
            else:
                tensors = measure_stored(found.tensors, progress)
        return Sensitivity(model=model, samples=0, tensors=tensors)
    source = resolve_source(model)
    pooling = pooling_from_folder(source.path) if source.kind == "huggingface" and source.path else None
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plan = Plan(
            model=model,
            base=Path(),
            name=None,
            task=task,
            tokenizer=None,
            target=list_targets()[0],
            recipe=Recipe(torch=(), graph=(), tables=()),
            data=DataOptions(file=str(Path(data).absolute())),
            budget=Budget(),
            android=AndroidOptions(),
            out=work / "out",
            seed=0,
        )
        chosen = resolve_task(task, config=source.config, labels=class_labels(source, plan), pooling=pooling)
        progress.step("export")
        reference = export_reference(source, chosen, plan, Steps(work, None, versions(), progress))
        batches = reference.samples.calibration
        tensors = measure_graph(reference.folder / MODEL_NAME, batches, work, seed=plan.seed, progress=progress)
    return Sensitivity(model=model, samples=sum(batch.rows for batch in batches), tensors=tensors)
