"""Static int8 quantization of a float ONNX graph, in the form that runs on ONNX Runtime's int8 kernels.

Every MatMul or Gemm with a constant weight gets int8 weights (a scale for each output channel) and a static,
calibrated uint8 scale on its *input*; its output stays float32. Quantizing outputs is what ruins transformers under
other static quantizers: one token a sequence carries activations hundreds of times larger than the rest, and a scale
that spans them leaves nothing for the others. Inputs are harmless by comparison, and the kernels need no more.

Two graph forms (the target's profile picks, ``form`` overrides)::

    integer:  x -> QuantizeLinear -> MatMulIntegerToFloat(int8 weight, scales, bias) -> float
    qdq:      x -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(int8 weight)) -> float

A Conv is another matter: its int8 kernel gives uint8, and pictures have no such tokens. So its output is quantized too,
and a chain of convolutions stays in uint8 from end to end (``edgeslim.int8_convs``). One whose output loses more than
``max_output_error`` of its energy that way stays float, and is named among the skipped.

Embedding tables stay int8 at run time, a scale a row: ``Gather(int8) -> Cast -> Mul(Gather(scale))``. The usual
``DequantizeLinear -> Gather`` would dequantize the whole table at every run.

By default the range of each MatMul's input and its smoothing are searched by the error of the layer's output, and its
weights are rounded by GPTQ, so that the output changes least. Smoothing divides the input by a vector before it is
quantized (one ``Mul`` at run time, where it pays) and multiplies the weight's rows by it.

Methods: Jacob et al. 2018, arXiv 1712.05877; Xiao et al. 2022, arXiv 2211.10438 (``edgeslim.smoothing``); Frantar et
al. 2022, arXiv 2210.17323 (``edgeslim.gptq``); ranges from distributions as in ``edgeslim.numerics``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Context, Runner, StepResult
from edgeslim.gptq import factor_inverse, round_gptq
from edgeslim.graph import constant_array, save_graph
from edgeslim.int8_convs import Conv, conv_obstacle, find_conv, guard_float, write_conv
from edgeslim.int8_forms import MICROSOFT, Int8Writer, Linear, Table, attribute, find_linear
from edgeslim.numerics import (
    Affine,
    Calibration,
    Histogram,
    QuantizedWeight,
    activation_affine,
    choose_range,
    quantization_error,
    quantize_weight,
)
from edgeslim.observation import Observed, add_hessians, observe
from edgeslim.session import OrtRunner, open_runner
from edgeslim.smoothing import Smoothing, search_smoothing

__all__ = ["QuantizeInt8"]


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8:
    """Static int8. ``keep_float`` are patterns of node names (``*`` allowed) that are left alone.

    ``method`` chooses activation ranges: from their distribution (``minmax``, ``percentile``, ``entropy``, ``mse``), or
    by the error of the layer's ``output``, the only one that also smooths (``smooth``; a Conv takes ``mse`` then).
    ``rounding`` of a MatMul's weights: to the ``nearest`` integer, or by ``gptq``, where they are symmetric.
    ``percentile`` counts for that method only. Weights below ``min_elements`` stay float, but for a Conv's: a float one
    between two in int8 costs two conversions. ``activation`` affine lets the zero point follow the data, symmetric
    fixes it at 128; ``weight`` affine gives each channel of a MatMul a zero point. A Conv stays float if uint8 would
    cost its output more than ``max_output_error`` of its energy.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["output", "minmax", "percentile", "entropy", "mse"] = "output"
    percentile: float = 99.99
    smooth: bool = True
    rounding: Literal["nearest", "gptq"] = "gptq"
    per_channel: bool = True
    activation: Literal["affine", "symmetric"] = "affine"
    weight: Literal["symmetric", "affine"] = "symmetric"
    form: Literal["target", "integer", "qdq"] = "target"
    embeddings: bool = True
    convolutions: bool = True
    max_output_error: float = 0.01
    min_elements: int = 1024
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: {self.percentile}, expected more than 50 and at most 100")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")
        if not 0 < self.max_output_error <= 1:
            raise ValueError(f"max_output_error: {self.max_output_error}, expected more than 0 and at most 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Quantizes ``model`` in place.

        Raises:
            BadInputError: there is something to quantize and nothing to calibrate with, or activations aren't finite.
        """
        skipped: dict[str, str] = {}
        linears = list(self._linears(model.graph, skipped))
        convs = list(self._convs(model.graph, skipped))
        tables = list(self._tables(model.graph, skipped)) if self.embeddings else []
        seen, runner = self._observe(model, linears, convs, ctx)
        ranges = {name: self._affine(observed.histogram) for name, observed in seen.items()}
        convs = self._leave_lossy(convs, seen, ranges, skipped)
        writer = Int8Writer(model.graph, integer=self._integer(ctx))
        sites = self._choose_sites(linears, convs, seen, ctx)
        self._write_linears(writer, linears, sites, runner, ctx)
        for conv in convs:
            output = ranges[conv.output.name or ""]
            write_conv(writer, conv, ranges[conv.source_name], output, per_channel=self.per_channel)
        guard_float(model.graph)
        for table in tables:
            writer.write_table(table, quantize_weight(table.weight, axis=0, scale=self._scale(table, table.weight)))
        if linears and writer.integer:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
        weights = [item.weight for group in (linears, convs, tables) for item in group]
        metrics = {
            "linear_layers": float(len(linears)),
            "conv_layers": float(len(convs)),
            "embedding_tables": float(len(tables)),
            "int8_weights": float(sum(weight.size for weight in weights)),
            "smoothed_inputs": float(sum(site.scale is not None for site in sites.values())),
            "calibration_samples": float(sum(batch.rows for batch in ctx.calibration)),
        }
        return StepResult(
            model=model, changed=len(linears) + len(convs) + len(tables), skipped=skipped, metrics=metrics
        )

    def _integer(self, ctx: Context) -> bool:
        form = ctx.target.runtime.int8_form if self.form == "target" else self.form
        return form == "integer"

    def _linears(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Linear]:
        for node in graph:
            if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
                continue
            name = node.name or node.outputs[0].name or node.op_type
            reason = self._obstacle(node, name)
            if reason:
                skipped[name] = reason
            else:
                yield find_linear(node, name)

    def _obstacle(self, node: ir.Node, name: str) -> str:
        """Why a node is left in float, or an empty string."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float):
            return "kept float by the recipe"
        weight = constant_array(node.inputs[1])
        if weight is None:
            return "both operands are computed: there is no weight"
        if weight.dtype != np.float32:
            return f"its weight is {weight.dtype}, not float32"
        if weight.ndim != 2:
            return f"its weight has {weight.ndim} dimensions, not 2"
        if weight.size < self.min_elements:
            return f"its weight has {weight.size} elements, fewer than min_elements = {self.min_elements}"
        if node.op_type == "Gemm":
            plain = all(attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            fitting = bias is None or getattr(constant_array(bias), "ndim", 0) == 1
            if not plain or attribute(node, "transA", 0) or not fitting:
                return "a Gemm with alpha, beta, transA or a bias that isn't constant"
        return ""

    def _convs(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Conv]:
        for node in graph:
            if node.domain not in ("", "ai.onnx") or node.op_type != "Conv":
                continue
            name = node.name or node.outputs[0].name or node.op_type
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float) or not self.convolutions:
                skipped[name] = "kept float by the recipe"
            elif reason := conv_obstacle(node):
                skipped[name] = reason
            else:
                yield self._fold(find_conv(node, name))

    def _fold(self, conv: Conv) -> Conv:
        """Without its activation where a symmetric scale, which has a negative half, can't stand in for it."""
        return replace(conv, activation=None) if self.activation == "symmetric" else conv

    def _leave_lossy(
        self,
        convs: Sequence[Conv],
        seen: Mapping[str, Observed],
        ranges: Mapping[str, Affine],
        skipped: dict[str, str],
    ) -> list[Conv]:
        """The convolutions whose outputs survive uint8; the others are told among the ``skipped``."""
        kept = []
        for conv in convs:
            name = conv.output.name or ""
            lost = quantization_error(seen[name].histogram, ranges[name])
            if lost > self.max_output_error:
                skipped[conv.name] = f"its output in uint8 would lose {lost:.3f} of its energy"
            else:
                kept.append(conv)
        return kept

    def _tables(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[Table]:
        for node in graph:
            if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
                continue
            weight = constant_array(node.inputs[0])
            if weight is None or weight.dtype != np.float32 or weight.ndim != 2 or attribute(node, "axis", 0) != 0:
                continue  # shape arithmetic, not an embedding
            name = node.name or node.outputs[0].name or node.op_type
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float):
                skipped[name] = "kept float by the recipe"
            elif weight.size < self.min_elements:
                skipped[name] = f"its table has {weight.size} elements, fewer than min_elements = {self.min_elements}"
            else:
                yield Table(node=node, name=name, weight=weight)

    def _observe(
        self, model: ir.Model, linears: Sequence[Linear], convs: Sequence[Conv], ctx: Context
    ) -> tuple[dict[str, Observed], Runner]:
        """What is seen of the values to be quantized, by their names in the float graph, and what runs that graph."""
        values = {linear.source_name: linear.source for linear in linears}
        values |= {conv.source_name: conv.source for conv in convs}
        values |= {conv.output.name or "": conv.output for conv in convs}
        if not values:
            return {}, ctx.reference
        runner = _open_probe(model, list(values.values()), ctx)
        rows = {linear.source_name for linear in linears}
        return observe(runner, tuple(values), ctx.calibration, rows=rows, seed=ctx.seed, progress=ctx.progress), runner

    def _affine(self, histogram: Histogram) -> Affine:
        symmetric = self.activation == "symmetric"
        method: Calibration = "mse" if self.method == "output" else self.method
        low, high = choose_range(histogram, method, symmetric=symmetric, percentile=self.percentile)
        return activation_affine(low, high, symmetric=symmetric)

    def _choose_sites(
        self, linears: Sequence[Linear], convs: Sequence[Conv], seen: Mapping[str, Observed], ctx: Context
    ) -> dict[str, Smoothing]:
        """Range and smoothing of each MatMul's input; an input that a Conv makes or takes is not smoothed."""
        weights: dict[str, list[npt.NDArray[np.float32]]] = {}
        for linear in linears:
            weights.setdefault(linear.source_name, []).append(linear.weight)
        shared = {name for conv in convs for name in (conv.source_name, conv.output.name)}
        sites = {}
        for name, group in ctx.progress.track(weights.items(), "choosing ranges", len(weights)):
            observed = seen[name]
            if self.method != "output" or observed.maximum is None or name in shared:
                sites[name] = Smoothing(scale=None, affine=self._affine(observed.histogram), strength=0, error=0)
            else:
                symmetric = self.activation == "symmetric"
                sites[name] = search_smoothing(
                    observed.rows, group, observed.maximum, symmetric=symmetric, allowed=self.smooth
                )
        return sites

    def _write_linears(
        self, writer: Int8Writer, linears: list[Linear], sites: Mapping[str, Smoothing], runner: Runner, ctx: Context
    ) -> None:
        hessians: dict[str, npt.NDArray[np.float64]] = {}
        if self.rounding == "gptq" and self.weight == "symmetric":
            hessians = add_hessians(runner, sites, ctx.calibration, progress=ctx.progress)
        order = {name: index for index, name in enumerate(sites)}
        factor: npt.NDArray[np.float64] | None = None
        for linear in ctx.progress.track(
            sorted(linears, key=lambda linear: order[linear.source_name]), "quantizing weights"
        ):
            name = linear.source_name
            if name in hessians:  # the first of those that share this input
                factor = factor_inverse(hessians.pop(name))
            writer.write_linear(linear, self._round(linear, sites[name], factor), sites[name])

    def _scale(self, _item: Linear | Table, _weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """The step of each output channel or row of a weight (smoothed, if it is); None: what just clips nothing."""
        return None

    def _round(self, linear: Linear, site: Smoothing, factor: npt.NDArray[np.float64] | None) -> QuantizedWeight:
        """The int8 weight of ``linear``: its scale, then its rounding."""
        moved = linear.weight if site.scale is None else linear.weight * site.scale[:, None]
        axis = 1 if self.per_channel else None
        weight = quantize_weight(
            moved, axis=axis, symmetric=self.weight == "symmetric", scale=self._scale(linear, moved)
        )
        if factor is None:
            return weight
        return replace(weight, values=round_gptq(moved, factor, np.broadcast_to(weight.scale, moved.shape[1:])))


def _open_probe(model: ir.Model, sources: list[ir.Value], ctx: Context) -> OrtRunner:
    """A session that gives ``sources`` (those that aren't inputs already) beside the model's outputs."""
    kept = list(model.graph.outputs)
    present = {value.name for value in (*kept, *model.graph.inputs)}
    try:
        for value in sources:
            if value.name not in present:
                present.add(value.name)
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
        path, _ = save_graph(model, ctx.work_dir / "calibrate")
    finally:
        del model.graph.outputs[len(kept) :]
    return open_runner(path)
