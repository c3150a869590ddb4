"""A graph for one shape alone: what accelerators and small runtimes ask for, and what lets shape arithmetic vanish.

Every input takes the shape that all samples have. With those sizes known, shapes are inferred anew and whatever only
computed sizes is folded into constants. The frozen graph is compared with the free one before anything else sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Batch
from edgeslim.errors import BadInputError, CheckError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import max_difference, open_runner

__all__ = ["fixed_length", "timed_length", "freeze_shapes"]

TOLERANCE = 1e-3


def freeze_shapes(path: Path, samples: Sequence[Batch], folder: Path) -> dict[str, float]:
    """Writes the graph at ``path`` into the new ``folder`` with constant dimensions; returns how far the two differ.

    Raises:
        BadInputError: the samples differ in shape, or the graph has other dimensions.
        CheckError: the frozen graph gives other outputs, or a dimension that depends on values.
    """
    model = load_graph(path)
    free = open_runner(path)
    shapes = {name: _one_shape(name, samples) for name in free.inputs}
    for value in model.graph.inputs:
        _set_shape(value, shapes[value.name or ""])
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    outputs = free(samples[0].feed)
    for value in model.graph.outputs:
        value.shape = ir.Shape(outputs[value.name or ""].shape)
    _fold(model)
    frozen, _ = save_graph(model, folder)
    runner = open_runner(frozen)
    largest = 0.0
    for sample in samples:
        difference, cosine = max_difference(free(sample.feed), runner(sample.feed))
        largest = max(largest, difference)
        if not difference <= TOLERANCE and not cosine >= 1 - 1e-6:
            raise CheckError(
                "export",
                f"with fixed shapes the outputs differ by {difference:.3g}",
                expected=f"at most {TOLERANCE:g}",
                hint="does a shape of the model depend on values? then leave fixed_shapes out",
            )
    return {"frozen_max_abs_diff": largest, "frozen_inputs": float(len(shapes))}


def fixed_length(path: Path) -> int | None:
    """The number of tokens that the graph at ``path`` takes, if it takes only one."""
    return _dimension(open_runner(path).signature()["inputs"], "input_ids", 2, 1)


def timed_length(path: Path, usual: int) -> int:
    """The tokens of a run that is timed: ``usual``, those that the graph takes, or what its KV cache has room for."""
    inputs = open_runner(path).signature()["inputs"]
    room = _dimension(inputs, "past_key_values.0.key", 4, 2) or usual
    return _dimension(inputs, "input_ids", 2, 1) or min(usual, room)


def _dimension(inputs: Sequence[Mapping[str, object]], name: str, rank: int, axis: int) -> int | None:
    shape = next((item["shape"] for item in inputs if item["name"] == name), None)
    length = shape[axis] if isinstance(shape, list) and len(shape) == rank else None
    return length if isinstance(length, int) else None


def _one_shape(name: str, samples: Sequence[Batch]) -> tuple[int, ...]:
    found: list[tuple[int, ...]] = sorted({batch.feed[name].shape for batch in samples})
    if len(found) != 1:
        raise BadInputError(
            f"export.fixed_shapes: input {name}",
            "samples of the shapes " + ", ".join(str(list(shape)) for shape in found[:3]),
            expected="one shape for all samples",
            hint="fixed_length = 128 in [export] cuts and pads texts to 128 tokens",
        )
    return found[0]


def _set_shape(value: ir.Value, shape: tuple[int, ...]) -> None:
    known = None if value.shape is None else value.shape.dims
    fits = known is None or (
        len(known) == len(shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(known, shape, strict=True))
    )
    if not fits:
        raise BadInputError(
            f"export.fixed_shapes: input {value.name}",
            f"samples of shape {list(shape)}",
            expected=f"the model's {[str(dim) for dim in known or ()]}",
        )
    value.shape = ir.Shape(shape)


def _fold(model: ir.Model) -> None:
    """Infers shapes and makes constants of what they alone decide."""
    import onnxscript.optimizer

    passes.ShapeInferencePass()(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=1)(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
