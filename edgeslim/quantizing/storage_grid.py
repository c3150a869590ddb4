"""Int8 weights of a quantized graph, moved onto coarser grids until they are small enough once entropy-coded.

The graph stays as it is, and so do its kernels: integers and scales are exchanged, nothing else. Most channels then use
a few of their 255 levels, which the container's coder stores in a few bits. ``edgeslim.algorithms.allocation`` says
which step each channel gets; this module knows where integers and scales lie in a graph, what everything else in the
file takes, and how to meet a goal in bytes: the steps are found on a sample of the columns, then all are rounded, and
the file that comes of it is really written and coded. Where it misses the goal, bytes or bits a weight, the aim is
moved by what it was off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim import codec
from edgeslim.algorithms.allocation import GridTensor, find_delta, predict_bytes
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.rate import coded_bytes
from edgeslim.core import Context, Progress
from edgeslim.errors import BadInputError, BudgetError
from edgeslim.graphs.graph import INLINE_BYTES, WEIGHTS_NAME, save_graph, weight_spans
from edgeslim.graphs.int8_forms import Linear, Table
from edgeslim.numerics import quantize_weight
from edgeslim.packaging.archive import deflated_bytes
from edgeslim.quantizing.answer_gradients import Sensitivity, measure_sensitivity, row_frequencies
from edgeslim.torch_graph import TorchGraph

__all__ = ["StorageFit", "StorageGoal", "encode_weights", "fit_storage", "packed_size", "plain_bytes"]

MIN_BITS = 1.25
"""Below so many bits a weight nothing that is predicted to second order means anything."""
ATTEMPTS = 3
AIM = 0.998
NEAR = 0.003
"""Bits a weight that are off by no more than this share are what was asked for."""
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class StorageGoal:
    """Either ``bits`` a weight, on average over the tensors on grids, or ``bytes`` for the graph and all weights."""

    bits: float | None = None
    bytes: int | None = None


def encode_weights(path: Path, packed: Path) -> int:
    """Codes the weights beside the model at ``path`` into the container ``packed``; the number of its segments."""
    image = memoryview((path.parent / WEIGHTS_NAME).read_bytes())
    segments = [
        codec.Segment(
            name=span.name,
            data=image[span.offset : span.offset + span.length],
            dtype=span.dtype,
            shape=span.shape,
        )
        for span in weight_spans(path)
    ]
    codec.write_container(packed, segments)
    return len(segments)


@dataclass(frozen=True, kw_only=True)
class PackedSize:
    """What a model takes in a package: its graph, deflated as in an archive, and its coded weights."""

    graph: int
    weights: int


def packed_size(model: ir.Model, folder: Path) -> PackedSize:
    """The size of ``model``, which is written into the new ``folder`` for that."""
    path, _ = save_graph(model, folder)
    packed = folder / "weights.esz"
    encode_weights(path, packed)
    return PackedSize(graph=deflated_bytes(path), weights=packed.stat().st_size)


def plain_bytes(model: ir.Model, linears: Sequence[Linear], tables: Sequence[Table]) -> int:
    """About what ``model`` would take with ``linears`` and ``tables`` in int8 as fine as can be, and the rest as is."""
    weights = [(linear.weight, 1) for linear in linears] + [(table.weight, 0) for table in tables]
    used = [value for value in model.graph.initializers.values() if value.uses() or value.is_graph_output()]
    constants = [value.const_value for value in used if value.const_value is not None]
    rest = sum(constant.nbytes for constant in constants) - sum(weight.nbytes for weight, _ in weights)
    return max(rest, 0) + coded_bytes(*(quantize_weight(weight, axis=axis).values for weight, axis in weights))


class StorageFit:
    """Collects what the choice of steps needs while a graph is quantized, and then makes the choice."""

    def __init__(self, goal: StorageGoal, context: Context, *, strength: float, samples: int, frequency: float) -> None:
        self._goal = goal
        self._context = context
        self._strength = strength
        self._samples = samples
        self._frequency = frequency
        self._sensitivity: Sensitivity | None = None
        self._tensors: list[GridTensor] = []

    def measure(
        self, model: ir.Model, linears: Sequence[Linear], tables: Sequence[Table], skipped: dict[str, str]
    ) -> None:
        """Measures gradients of the float ``model``; where it can't be differentiated, ``skipped`` says why."""
        given = {_name(table.node.outputs[0]): (_name(table.node.inputs[1]), len(table.weight)) for table in tables}
        values = [_name(linear.output) for linear in linears]
        try:
            self._sensitivity = measure_sensitivity(
                TorchGraph(model),
                self._context.calibration,
                self._context.task,
                values,
                given,
                samples=self._samples,
                seed=self._context.seed,
                progress=self._context.progress,
            )
        except BadInputError as error:
            skipped["gradients"] = f"steps are chosen by each layer's own error: {error.where}: {error.got}"
        self._tensors += [self._table(table, _name(table.node.outputs[0])) for table in tables]

    def add_linear(
        self, linear: Linear, weight: npt.NDArray[np.float32], upper: npt.NDArray[np.float64], *, samples: int
    ) -> None:
        """Adds a layer: its weight as it will be rounded, and ``factor_inverse`` of its inputs' Hessian.

        The Hessian is a sum over ``samples``.
        """
        found = self._sensitivity
        if found is None:
            energy = float(np.square(np.linalg.solve(upper.T, weight)).sum())
            gradients = np.full(weight.shape[1], 1 / max(energy, TINY))
        else:
            output = _name(linear.output)
            gradients = found.channels[output] / max(found.tokens[output] * samples, 1)
        self._tensors.append(GridTensor(name=linear.name, weight=weight, upper=upper, gradients=gradients))

    def apply(self, model: ir.Model) -> Mapping[str, float]:
        """Moves the weights of ``model``, which is quantized by now; metrics as ``fit_storage`` gives them."""
        context = self._context
        return fit_storage(
            model,
            self._tensors,
            self._goal,
            strength=self._strength,
            folder=context.work_dir / "storage",
            progress=context.progress,
        )

    def _table(self, table: Table, output: str) -> GridTensor:
        found = self._sensitivity
        if found is None:
            upper = np.eye(table.weight.shape[1])
            energy = float(np.square(table.weight, dtype=np.float64).sum())
            gradients = np.full(len(table.weight), 1 / max(energy, TINY))
        else:
            lookup, tokens = found.lookups[output], found.tokens[output]
            upper = factor_inverse(lookup.covariance / max(tokens, 1))
            gradients = row_frequencies(lookup.counts, self._frequency) * tokens / max(found.samples, 1)
        return GridTensor(
            name=table.name,
            weight=np.ascontiguousarray(table.weight.T),
            upper=upper,
            gradients=gradients,
            stored_by_column=True,
        )


def _name(value: ir.Value | None) -> str:
    """A value's name, empty if it has none."""
    return (value.name if value is not None else None) or ""


def fit_storage(
    model: ir.Model,
    tensors: Sequence[GridTensor],
    goal: StorageGoal,
    *,
    strength: float,
    folder: Path,
    progress: Progress,
) -> Mapping[str, float]:
    """Moves ``tensors`` of the quantized ``model`` onto grids that meet ``goal``; its integers and scales are replaced.

    Returns metrics: bits a weight, predicted and real bytes of the container, and the squared change of the output that
    is expected of it. A goal in bytes that the model keeps already leaves it as it is.

    Raises:
        BudgetError: the goal can't be reached; the message says what can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = packed_size(model, folder / "plain")
    if goal.bytes is not None and plain.graph + plain.weights <= goal.bytes:
        return {}
    weights = sum(tensor.weight.size for tensor in tensors)
    rest = plain.weights - _written_bytes(model, tensors)
    wanted = (goal.bits or 8.0) * weights / 8 if goal.bytes is None else goal.bytes - plain.graph - rest

    def predict(delta: float) -> float:
        return predict_bytes(tensors, delta, strength=strength)

    low, high = _bounds(tensors)
    smallest = MIN_BITS * weights / 8
    if wanted < smallest:
        delta = find_delta(predict, smallest, low, high, weights=weights)
        raise _out_of_reach(goal, plain.graph + rest + smallest, sum(tensor.loss(delta) for tensor in tensors))
    share = 1.0 if goal.bytes is None else AIM
    aim, delta, predicted, real = wanted * share, high, 0.0, plain.weights
    for attempt in range(ATTEMPTS):
        delta = find_delta(predict, aim, low, high, weights=weights)
        predicted = predict(delta)
        for tensor in progress.track(tensors, "rounding weights"):
            write_rounded(model, tensor, delta, strength)
        size = packed_size(model, folder / f"attempt-{attempt}")
        real = size.weights
        off = (real - rest) / (wanted * share)
        if abs(off - 1) <= NEAR if goal.bytes is None else size.graph + size.weights <= goal.bytes:
            break
        aim /= off
    return {
        "storage_bits": 8 * (real - rest) / weights,
        "predicted_bytes": rest + predicted,
        "packed_bytes": float(real),
        "predicted_change": sum(tensor.loss(delta) for tensor in tensors),
    }


def write_rounded(model: ir.Model, tensor: GridTensor, delta: float, strength: float) -> None:
    """Puts the integers and scales of ``tensor`` at ``delta`` into ``model``."""
    rounded = tensor.round(delta, strength=strength)
    values, scales = _names(tensor)
    steps = rounded.steps.reshape(-1, 1) if tensor.stored_by_column else rounded.steps
    for name, array in ((values, tensor.stored(rounded)), (scales, steps)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def _names(tensor: GridTensor) -> tuple[str, str]:
    """The initializers of a tensor's integers and scales, as ``Int8Writer`` names them."""
    kind = "table" if tensor.stored_by_column else "weight"
    return f"{tensor.name}.{kind}_int8", f"{tensor.name}.{kind}_scale"


def _written_bytes(model: ir.Model, tensors: Sequence[GridTensor]) -> int:
    found = [model.graph.initializers[name].const_value for tensor in tensors for name in _names(tensor)]
    return coded_bytes(*(array.numpy() for array in found if array is not None and array.nbytes > INLINE_BYTES))


def _bounds(tensors: Sequence[GridTensor]) -> tuple[float, float]:
    """A δ at which every step is as fine as int8 allows, and one at which nearly all integers are zero."""
    ratios = [tensor.least_steps * np.sqrt(tensor.sensitivity) for tensor in tensors]
    return float(min(ratio.min() for ratio in ratios)), float(max(np.median(ratio) for ratio in ratios)) * 127


def _out_of_reach(goal: StorageGoal, smallest: float, change: float) -> BudgetError:
    given = f"{goal.bits} bits a weight" if goal.bytes is None else f"{goal.bytes:,} bytes for graph and weights"
    return BudgetError(
        "target_bits" if goal.bytes is None else "budget.max_size",
        given,
        expected=f"at least {math.ceil(smallest):,} bytes ({MIN_BITS} bits a weight), where the model's answer is "
        f"predicted to change by {change:.3g} (squared, a sample; half of it is 1 - cosine for vectors of length 1)",
        hint="a smaller model, or a larger budget",
    )
