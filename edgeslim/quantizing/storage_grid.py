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
from edgeslim.algorithms.allocation import GridTensor, Rounded, find_delta, predict_bytes
from edgeslim.algorithms.rate import LEVELS, coded_bytes
from edgeslim.core import Progress
from edgeslim.errors import BudgetError
from edgeslim.graphs.graph import INLINE_BYTES, WEIGHTS_NAME, constant_array, save_graph, weight_spans
from edgeslim.graphs.int8_forms import Linear, Table
from edgeslim.numerics import quantize_weight
from edgeslim.packaging.archive import deflated_bytes

__all__ = [
    "StorageGoal",
    "encode_weights",
    "fit_storage",
    "packed_size",
    "plain_bytes",
    "read_rounded",
    "write_learned",
]

MIN_BITS = 1.25
"""Below so many bits a weight nothing that is predicted to second order means anything."""
ATTEMPTS = 3
AIM = 0.998
NEAR = 0.003
"""Bits a weight that are off by no more than this share are what was asked for."""
ROUNDING = 0.05
"""How far above a half the point may move where learned weights are rounded up."""
HALVINGS = 6


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


def read_rounded(model: ir.Model, tensor: GridTensor) -> Rounded:
    """The integers and scales of ``tensor`` as ``model`` has them."""
    values, scales = (constant_array(model.graph.initializers[name]) for name in _names(tensor))
    assert values is not None
    assert scales is not None
    return Rounded(values=values.T if tensor.stored_by_column else values, steps=scales.reshape(-1))


def write_learned(
    model: ir.Model,
    tensors: Sequence[GridTensor],
    latents: Mapping[str, npt.NDArray[np.float32]],
    *,
    most: int,
    folder: Path,
) -> int | None:
    """Puts the integers nearest to ``latents``, by tensor, into ``model``, whose container may have ``most`` bytes.

    Latents are laid out as the file holds the weights. Where the integers take more bytes than they may, magnitudes are
    rounded up a little later than from a half, which moves weights that are nearly as far from one integer as from the
    other. Returns the bytes of the container, or ``None`` if that isn't enough: then the model is as it was.
    """
    rest = packed_size(model, folder / "rounded").weights - _written_bytes(model, tensors)
    steps = coded_bytes(*(read_rounded(model, tensor).steps for tensor in tensors))

    def integers(offset: float) -> list[npt.NDArray[np.int8]]:
        return [_round_from(latents[tensor.name], offset) for tensor in tensors]

    def fits(offset: float) -> bool:
        return rest + steps + coded_bytes(*integers(offset)) <= most

    low, high = 0.0, ROUNDING
    if fits(low):
        high = low
    elif not fits(high):
        return None
    for _ in range(HALVINGS if high else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    for tensor, values in zip(tensors, integers(high), strict=True):
        name, _ = _names(tensor)
        model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    return packed_size(model, folder / "learned").weights


def _round_from(latent: npt.NDArray[np.float32], offset: float) -> npt.NDArray[np.int8]:
    """Magnitudes rounded up from a half plus ``offset``."""
    magnitude = np.floor(np.abs(latent) + np.float32(0.5 - offset))
    return np.asarray(np.copysign(np.minimum(magnitude, LEVELS), latent), np.int8)


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
