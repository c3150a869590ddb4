"""From a float source to a float ONNX graph, compared with its source before anything else runs.

optimum's exporter serves the architectures that it knows, where it is installed; ``torch.onnx.export(dynamo=True)``
serves everything else. Either way the result is the same: named outputs, free batch and sequence dimensions, weights
in external data, and a measured distance from the source model on real inputs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Batch, Feed, Runner
from edgeslim.errors import BadInputError, CheckError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import max_difference, open_runner

if TYPE_CHECKING:
    from torch import nn

    from edgeslim.source import OwnModel

__all__ = ["Export", "export_huggingface", "export_own", "import_onnx", "torch_runner"]

TOLERANCE = 1e-3
DYNAMO_OPSET = 20


@dataclass(frozen=True, kw_only=True)
class Export:
    """A float graph on disk. ``engine`` made it; ``metrics`` say how far it is from its source."""

    path: Path
    engine: str
    metrics: Mapping[str, float]


def export_huggingface(
    module: nn.Module,
    samples: Sequence[Batch],
    *,
    classifier: bool,
    opset_max: int,
    folder: Path,
    images: bool = False,
) -> Export:
    """Exports a transformers encoder, its first output alone: ``logits`` or ``last_hidden_state``.

    With ``images`` it is a classifier of pictures, whose sides stay fixed where torch exports it.

    Raises:
        BadInputError: neither exporter can express the model.
        CheckError: the graph's outputs are further than 1e-3 from the module's.
    """
    output = "logits" if classifier or images else "last_hidden_state"
    opset = min(DYNAMO_OPSET, opset_max)
    scratch = _make_scratch(folder)
    task = "text-classification" if classifier else "image-classification" if images else "feature-extraction"
    if _optimum_knows(module, task):
        engine = "optimum"
        with _calm():
            _export_optimum(module, task, scratch)
    else:
        engine = "torch"
        inputs = _taken(module, _tensors(samples[0].feed))
        # Sizes of 1 and equal sizes would be taken for constants: export on a batch of 2 and a length of its own.
        inputs = {name: value[:1].repeat(2, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
        free = {name: _free(value, 1 if images else value.dim()) for name, value in inputs.items()}
        with _calm():
            _export_dynamo(module, inputs, free, opset, scratch)
    path = _finish(scratch / "model.onnx", folder, output)
    return _compared(torch_runner(module, output), path, engine, samples)


def export_own(own: OwnModel, samples: Sequence[Batch], *, opset_max: int, folder: Path) -> Export:
    """Exports a user's ``nn.Module``; dimensions are fixed unless the user named dynamic shapes.

    Raises:
        BadInputError: ``torch.onnx.export`` can't express the module.
        CheckError: the graph's outputs are further than 1e-3 from the module's.
    """
    scratch = _make_scratch(folder)
    with _calm():
        _export_dynamo(own.module, own.inputs, own.dynamic_shapes, min(DYNAMO_OPSET, opset_max), scratch)
    path = _finish(scratch / "model.onnx", folder, None)
    return _compared(torch_runner(own.module, None), path, "torch", samples)


def import_onnx(path: Path, samples: Sequence[Batch], *, folder: Path) -> Export:
    """Takes an ONNX file over, weights inline or external, and compares the copy with the original.

    Raises:
        BadInputError: the file is malformed, or holds weights that aren't finite.
    """
    model = load_graph(path)
    _check_finite(model, path)
    copy, _ = save_graph(model, folder)
    return _compared(open_runner(path), copy, "onnx", samples)


def torch_runner(module: nn.Module, output: str | None) -> Runner:
    """The module as a ``Runner``: its ``output`` alone, or all its outputs in order."""
    import torch

    def run(feed: Feed) -> Feed:
        with torch.no_grad():
            made = module(**_taken(module, _tensors(feed)))
        if output is not None:
            return {output: made[output].numpy()}
        return {f"output_{index}": value.numpy() for index, value in enumerate(_leaves(made))}

    return run


def _leaves(made: Any) -> Iterator[Any]:
    """The tensors of nested outputs in the order in which the exporter numbers them."""
    if isinstance(made, Mapping | tuple | list):
        for item in made.values() if isinstance(made, Mapping) else made:
            yield from _leaves(item)
    elif hasattr(made, "numpy"):  # None and plain numbers are no outputs of a graph
        yield made


def _make_scratch(folder: Path) -> Path:
    """A folder beside ``folder`` for what the exporter writes."""
    scratch = folder.with_name(folder.name + "-raw")
    scratch.mkdir(parents=True)
    return scratch


def _compared(source: Runner, path: Path, engine: str, samples: Sequence[Batch]) -> Export:
    runner = open_runner(path)
    largest, smallest = 0.0, 1.0
    for sample in samples:
        difference, cosine = max_difference(source(sample.feed), runner(sample.feed))
        largest, smallest = max(largest, difference), min(smallest, cosine)
    if not largest <= TOLERANCE and not smallest >= 1 - 1e-6:  # "not <=" so that NaN fails too
        raise CheckError(
            "export",
            f"outputs differ from the source model's by up to {largest:.3g} (cosine {smallest:.6f})",
            expected=f"at most {TOLERANCE:g}",
            hint="does the model draw random numbers, or depend on Python control flow?",
        )
    metrics = {"export_max_abs_diff": largest, "export_cosine_min": smallest, "export_samples": float(len(samples))}
    return Export(path=path, engine=engine, metrics=metrics)


def _optimum_knows(module: nn.Module, task: str) -> bool:
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401  registers the architectures
        from optimum.exporters.tasks import TasksManager
    except ImportError:
        return False
    kind = getattr(getattr(module, "config", None), "model_type", "")
    try:
        known = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        return False
    return task in known


def _export_optimum(module: nn.Module, task: str, folder: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    onnx_export_from_model(module, folder, task=task, do_validation=False, preprocessors=None)


def _export_dynamo(
    module: nn.Module, inputs: Mapping[str, Any], dynamic: Mapping[str, Any] | None, opset: int, folder: Path
) -> None:
    import torch

    try:
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            dynamo=True,
            dynamic_shapes=dict(dynamic) if dynamic is not None else None,
            opset_version=opset,
            verbose=False,
        )
    except Exception as error:  # the exporter lets errors of many layers through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInputError(
            "export",
            f"torch.onnx.export can't express the model: {reason[:300]}",
            expected="a module that torch.export can trace",
            hint="avoid Python control flow that depends on tensor values, or give an .onnx file",
        ) from error
    assert program is not None
    program.save(str(folder / "model.onnx"))


def _finish(raw: Path, folder: Path, output: str | None) -> Path:
    """Keeps one named output (or all), lifts constants to initializers, drops what nothing uses."""
    model = load_graph(raw)
    if output is not None:
        first = model.graph.outputs[0]
        del model.graph.outputs[1:]
        first.name = output
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=1)(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    _check_finite(model, raw)
    path, _ = save_graph(model, folder)
    return path


def _check_finite(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype.itemsize >= 2:
            array = tensor.numpy()
            if not np.isfinite(array.astype(np.float32, copy=False).sum(dtype=np.float64)):
                bad = int(np.count_nonzero(~np.isfinite(array.astype(np.float32))))
                if bad:
                    raise BadInputError(
                        f"{path.name}: tensor {name}",
                        f"{bad:,} of {array.size:,} weights are NaN or infinite",
                        expected="finite weights",
                        hint="was the training run that wrote this checkpoint still sound?",
                    )


def _tensors(feed: Feed) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.array(value)) for name, value in feed.items()}


def _taken(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``inputs`` that ``forward`` takes, in its order: a tokenizer may give more."""
    return {name: inputs[name] for name in inspect.signature(module.forward).parameters if name in inputs}


def _free(value: Any, dims: int) -> dict[int, Any]:
    import torch

    return {dim: torch.export.Dim.DYNAMIC if dim < dims else None for dim in range(value.dim())}


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Keeps the exporters' warnings and logs, which say nothing to a user, off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal", "optimum", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
