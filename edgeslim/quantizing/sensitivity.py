"""How much each weight tensor suffers from fewer bits.

A tensor at a time is rounded to b bits: symmetric, a scale for each output channel (each row of an embedding table),
levels -(2**(b-1) - 1) to 2**(b-1) - 1, to the nearest. Three errors, each a relative root mean square,
‖wrong - right‖ / ‖right‖:

- of the weight itself;
- of the output of the operator that reads it, and
- of all float outputs of the model together, both by running the graph once for each tensor and width on some
  calibration samples. The weights are overridable initializers for that, so one session serves all runs. It is measured
  and not extrapolated: at two bits a first-order estimate is off by multiples.

What makes the operator's input hard to quantize stands beside it (``edgeslim.quantizing.outliers``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Batch, Feed, Progress
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.graphs.int8_forms import attribute
from edgeslim.module_paths import layer_path
from edgeslim.quantizing.outliers import InputFacts, measure_inputs
from edgeslim.session import OrtRunner, open_runner
from edgeslim.tensor_files import StoredTensor

__all__ = ["BITS", "Sensitivity", "TensorSensitivity", "measure_graph", "measure_stored", "round_channels"]

BITS = (8, 6, 4, 3, 2)
SAMPLES = 8
MAX_ELEMENTS = 1 << 28
OPERANDS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}

FloatArray = npt.NDArray[np.float32]
Errors = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class TensorSensitivity:
    """One weight tensor; errors by number of bits. Without data only those of the weight are known."""

    name: str
    layer: str
    operator: str
    shape: tuple[int, ...]
    parameters: int
    weight_error: Errors
    output_error: Errors | None = None
    model_error: Errors | None = None
    input: InputFacts | None = None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """A whole model, its tensors in the order of the graph; without ``samples`` only weights were looked at."""

    model: str
    samples: int
    tensors: tuple[TensorSensitivity, ...]


@dataclass(frozen=True, kw_only=True)
class _Site:
    """A weight and the first operator that reads it; ``axis`` is that of its output channels in the initializer."""

    value: ir.Value
    weight: FloatArray
    axis: int
    operator: str
    node: str
    source: ir.Value
    output: ir.Value

    @property
    def matrix(self) -> FloatArray:
        """[in, out] of a MatMul or Gemm."""
        return self.weight if self.axis == 1 else self.weight.T


def round_channels(weight: npt.NDArray[Any], axis: int, bits: int) -> FloatArray:
    """``weight`` rounded to ``bits`` with a scale for each index of ``axis``, as floats again."""
    values = np.asarray(weight, np.float32)
    others = tuple(dim for dim in range(values.ndim) if dim != axis)
    levels = np.float32(2 ** (bits - 1) - 1)
    scale = np.abs(values).max(axis=others, keepdims=True) / levels
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def measure_graph(
    path: Path, batches: Sequence[Batch], work: Path, *, seed: int, progress: Progress
) -> tuple[TensorSensitivity, ...]:
    """Every weight of the float graph at ``path``; with ``batches`` outputs and inputs, too. ``work`` takes files.

    Raises:
        BadInputError: the graph has no float weights that an operator of a known kind reads.
    """
    model = load_graph(path)
    sites = list(_find_sites(model.graph))
    if not sites:
        raise BadInputError(
            str(path), "no float weights", expected="MatMul, Gemm, Conv or Gather with a float32 weight"
        )
    errors = {
        _name(site.value): {bits: _relative(round_channels(site.weight, site.axis, bits), site.weight) for bits in BITS}
        for site in progress.track(sites, "rounding weights")
    }
    outputs: dict[str, tuple[Errors, Errors]] = {}
    inputs: dict[str, InputFacts] = {}
    if batches:
        wanted = tuple(_name(value) for value in model.graph.outputs)
        runner = _open_overridable(model, sites, work)
        matrices: dict[str, list[FloatArray]] = {_name(site.source): [] for site in sites if site.operator != "Gather"}
        for site in sites:
            if site.operator in ("MatMul", "Gemm"):
                matrices[_name(site.source)].append(site.matrix)
        inputs = measure_inputs(runner, matrices, batches, seed=seed, progress=progress)
        outputs = _measure_outputs(runner, sites, batches[:SAMPLES], wanted, progress)
    return tuple(
        TensorSensitivity(
            name=_name(site.value),
            layer=layer_path(_name(site.value), site.node),
            operator=site.operator,
            shape=tuple(site.weight.shape),
            parameters=int(site.weight.size),
            weight_error=errors[_name(site.value)],
            output_error=outputs[_name(site.value)][0] if outputs else None,
            model_error=outputs[_name(site.value)][1] if outputs else None,
            input=inputs.get(_name(site.source)),
        )
        for site in sites
    )


def measure_stored(tensors: Sequence[StoredTensor], progress: Progress) -> tuple[TensorSensitivity, ...]:
    """The weights of a file that tells no operators (safetensors): output channels are the first axis, as in PyTorch.

    Raises:
        BadInputError: there are no float tensors of two dimensions or more.
    """
    wanted = [
        tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.dtype in ("float32", "float16", "bfloat16")
    ]
    found = []
    for tensor in progress.track(wanted, "rounding weights"):
        if not 0 < tensor.values <= MAX_ELEMENTS:
            continue
        weight = _read(tensor)
        found.append(
            TensorSensitivity(
                name=tensor.name,
                layer=layer_path(tensor.name, tensor.node),
                operator="",
                shape=tensor.shape,
                parameters=tensor.values,
                weight_error={bits: _relative(round_channels(weight, 0, bits), weight) for bits in BITS},
            )
        )
    if not found:
        raise BadInputError("tensors", "no float weights", expected="float tensors of two dimensions or more")
    return tuple(found)


def _read(tensor: StoredTensor) -> FloatArray:
    data = b"".join(tensor.chunks())
    if tensor.dtype == "bfloat16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, "<f4" if tensor.dtype == "float32" else "<f2").astype(np.float32)
    return values.reshape(tensor.shape)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _find_sites(graph: ir.Graph) -> Iterator[_Site]:
    seen: set[str] = set()
    for node in graph:
        place = OPERANDS.get(node.op_type)
        if place is None or node.domain not in ("", "ai.onnx") or node.inputs[place] is None:
            continue
        value, turned = _find_initializer(node.inputs[place])
        if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        weight = value.const_value.numpy()
        if weight.ndim < 2 or (weight.ndim > 2 and node.op_type != "Conv") or _name(value) in seen:
            continue
        source = node.inputs[1 - place]
        if source is None or (node.op_type == "Gather" and attribute(node, "axis", 0) != 0):
            continue
        seen.add(_name(value))
        axis = 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)) else 0
        yield _Site(
            value=value,
            weight=np.asarray(weight, np.float32),
            axis=1 - axis if turned else axis,
            operator=node.op_type,
            node=node.name or _name(node.outputs[0]),
            source=source,
            output=node.outputs[0],
        )


def _find_initializer(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The initializer behind ``value``, and whether a Transpose of a matrix lies between."""
    turned = False
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Transpose"):
            return None, False
        turned ^= node.op_type == "Transpose"
        value = node.inputs[0]
    return value, turned


def _open_overridable(model: ir.Model, sites: Sequence[_Site], work: Path) -> OrtRunner:
    """A session whose weights can be fed, and that gives each site's input and output."""
    present = {_name(value) for value in (*model.graph.outputs, *model.graph.inputs)}
    for site in sites:
        model.graph.inputs.append(site.value)
        for value in (site.source, site.output):
            if _name(value) not in present and not (value is site.source and site.operator == "Gather"):
                present.add(_name(value))
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
    path, _ = save_graph(model, work / "overridable")
    return open_runner(path)


def _measure_outputs(
    runner: OrtRunner, sites: Sequence[_Site], batches: Sequence[Batch], wanted: Sequence[str], progress: Progress
) -> dict[str, tuple[Errors, Errors]]:
    """The errors of each site's own output and of the model's outputs, by the weight's name and bits."""
    names = [_name(site.output) for site in sites]
    right = [runner.run_only(batch.feed, [*dict.fromkeys((*wanted, *names))]) for batch in batches]
    found: dict[str, tuple[dict[int, float], dict[int, float]]] = {_name(site.value): ({}, {}) for site in sites}
    for site, bits in progress.track([(s, b) for s in sites for b in BITS], "running each tensor at each width"):
        rounded = round_channels(site.weight, site.axis, bits)
        own, model = _Sum(), _Sum()
        for batch, expected in zip(batches, right, strict=True):
            given = runner.run_only(
                batch.feed, [*dict.fromkeys((_name(site.output), *wanted))], {_name(site.value): rounded}
            )
            own.add(given, expected, [_name(site.output)])
            model.add(given, expected, wanted)
        found[_name(site.value)][0][bits], found[_name(site.value)][1][bits] = own.relative(), model.relative()
    return dict(found)


class _Sum:
    """Squared errors and squared values of several runs."""

    def __init__(self) -> None:
        self.lost = self.power = 0.0

    def add(self, given: Feed, expected: Feed, names: Sequence[str]) -> None:
        """Adds the float tensors among ``names``."""
        for name in names:
            if expected[name].dtype.kind == "f":
                right = expected[name].astype(np.float64)
                finite = np.isfinite(right)
                self.lost += float(np.square(given[name][finite] - right[finite]).sum())
                self.power += float(np.square(right[finite]).sum())

    def relative(self) -> float:
        """The relative root mean square."""
        return math.sqrt(self.lost / self.power) if self.power else 0.0


def _relative(rounded: FloatArray, weight: FloatArray) -> float:
    power = float(np.square(weight, dtype=np.float64).sum())
    return math.sqrt(float(np.square(rounded - weight, dtype=np.float64).sum()) / power) if power else 0.0
