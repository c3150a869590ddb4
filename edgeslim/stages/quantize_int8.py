"""Static int8 quantization of a float ONNX graph, in the form that runs on ONNX Runtime's int8 kernels.

Every MatMul or Gemm with a constant weight gets int8 weights (a scale for each output channel) and a static,
calibrated uint8 scale on its *input*; its output stays float32. Quantizing outputs is what ruins transformers under
other static quantizers: one token a sequence carries activations hundreds of times larger than the rest, and a scale
that spans them leaves nothing for the others. Inputs are harmless by comparison, and the kernels need no more. Where
an input suffers too, as behind a GELU, ``activation = "auto"`` gives it a scale a token.

Two graph forms (the target's profile picks, ``form`` overrides)::

    integer:  x -> QuantizeLinear -> MatMulIntegerToFloat(int8 weight, scales, bias) -> float
    qdq:      x -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(int8 weight)) -> float

A Conv is another matter: its int8 kernel gives uint8, and pictures have no such tokens. So its output is quantized too,
and a chain of convolutions stays in uint8 from end to end (``edgeslim.graphs.int8_convs``). One whose output loses more
than ``max_output_error`` of its energy that way stays float, and is named among the skipped.

Embedding tables stay int8 at run time, a scale a row: ``Gather(int8) -> Cast -> Mul(Gather(scale))``. The usual
``DequantizeLinear -> Gather`` would dequantize the whole table at every run.

By default the form of each MatMul's input is searched by the error of the layer's output, and its weights are rounded
by GPTQ, so that the output changes least. Smoothing divides the input by a vector before it is quantized, and
multiplies the weight's rows by it: in constants before it where they allow (``edgeslim.graphs.folding``), else by one
``Mul``.

``target_bits``, or a budget's ``max_size`` that plain int8 exceeds, moves weights and embeddings onto coarser grids:
still int8 for the kernels, with steps such that the entropy-coded file gets that small and the output suffers least
(``edgeslim.algorithms.allocation``, ``edgeslim.quantizing.storage_grid``). Steps are chosen by gradients of the model's
answer.

``distill_steps`` then trains the rounded weights on with their grids simulated, at the same size, to answer as the
float graph does (``edgeslim.quantizing.grid_training``). Biases aren't corrected apart from that: GPTQ leaves little of
a mean error (0.4 % of the layers' squared errors on a sentence encoder at 2.3 bits).

Methods: Jacob et al. 2018, arXiv 1712.05877; Xiao et al. 2022, arXiv 2211.10438, and Yao et al. 2022, arXiv 2206.01861
(``edgeslim.algorithms.smoothing``); Frantar et al. 2022, arXiv 2210.17323 (``edgeslim.algorithms.gptq``); ranges from
distributions as in ``edgeslim.numerics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.gptq import factor_inverse, round_gptq
from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Batch, Context, StepResult
from edgeslim.graphs.gelu import replace_gelus
from edgeslim.graphs.graph_weights import find_foreign
from edgeslim.graphs.heads import settle_heads
from edgeslim.graphs.int8_convs import Conv, guard_float, write_conv
from edgeslim.graphs.int8_forms import MICROSOFT, Int8Writer, Linear, Table
from edgeslim.graphs.reshapes import settle_reshapes
from edgeslim.numerics import (
    QuantizedWeight,
    quantization_error,
    quantize_weight,
)
from edgeslim.quantizing.grid_training import GridTrainingOptions
from edgeslim.quantizing.int8_inputs import InputQuantizer, fold_smoothing
from edgeslim.quantizing.int8_sites import SiteFinder
from edgeslim.quantizing.observation import Observed, input_hessian
from edgeslim.quantizing.storage_fit import StorageFit
from edgeslim.quantizing.storage_grid import StorageGoal, plain_bytes

__all__ = ["QuantizeInt8"]

NEARLY = 0.995
"""A plain int8 model whose size is estimated at this share of a goal keeps it."""


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8(GridTrainingOptions):
    """Static int8. ``keep_float`` are patterns of node names (``*`` allowed) that are left alone.

    ``method`` chooses activation ranges: from their distribution (``minmax``, ``percentile``, ``entropy``, ``mse``), or
    by the error of the layer's ``output``, the only one that also smooths (``smooth``; a Conv takes ``mse`` then).
    ``rounding`` of a MatMul's weights: to the ``nearest`` integer, or by ``gptq``, where they are symmetric.
    ``percentile`` counts for that method only. Weights below ``min_elements`` stay float, but for a Conv's: a float one
    between two in int8 costs two conversions. ``activation``: a MatMul's input has one ``static`` scale, or one
    ``per_token``, or by measured error either (``auto``). ``activation_range`` affine lets the zero point follow the
    data, symmetric fixes it at 128; ``weight`` affine gives each channel of a MatMul a zero point. A Conv stays float
    if uint8 would cost its output more than ``max_output_error`` of its energy. ``gelu``: its ``tanh`` form is faster
    and differs by 5e-4 at most; only the integer form has it. Of more calibration data than ``calibration_samples``,
    so many are taken, evenly spread: more cost time and give a sentence encoder 2e-5. Biases are not corrected by
    the mean of a layer's error: at 2.3 bits a weight that took 0.4 % off a sentence encoder's squared errors, 3.3 % at
    most.

    ``target_bits`` is the mean number of bits that a weight of a MatMul or an embedding takes in the file; without it,
    ``fit`` says whether a budget's size is a goal. ``rate_strength`` weighs saved bits against error when rounding:
    1 is their exchange in theory, and 0, GPTQ alone, was best on a sentence encoder. ``gradient_samples`` of the
    calibration data say how sensitive each channel is. ``token_frequency`` is the power of a token's share of the
    calibration data that counts for its row of an embedding table: 1 for texts like these, 0 to make all rows alike.

    ``distill_steps`` of training take their samples from ``[data] training``, whose labels aren't needed, or else from
    the calibration data. ``distill_rate`` is in steps of each weight's grid, and ``distill_hidden`` weighs what layers
    take against the answer. What is no better on validation samples afterwards isn't kept.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    method: Literal["output", "minmax", "percentile", "entropy", "mse"] = "output"
    percentile: float = 99.99
    smooth: bool = True
    rounding: Literal["nearest", "gptq"] = "gptq"
    per_channel: bool = True
    activation: Literal["static", "per_token", "auto"] = "static"
    activation_range: Literal["affine", "symmetric"] = "affine"
    weight: Literal["symmetric", "affine"] = "symmetric"
    form: Literal["target", "integer", "qdq"] = "target"
    gelu: Literal["tanh", "exact"] = "tanh"
    embeddings: bool = True
    convolutions: bool = True
    max_output_error: float = 0.01
    min_elements: int = 1024
    calibration_samples: int = 512
    keep_float: tuple[str, ...] = ()
    target_bits: float | None = None
    fit: bool = True
    rate_strength: float = 0.0
    gradient_samples: int = 256
    token_frequency: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: {self.percentile}, expected more than 50 and at most 100")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")
        if self.calibration_samples < 1:
            raise ValueError(f"calibration_samples: {self.calibration_samples}, expected at least 1")
        if not 0 < self.max_output_error <= 1:
            raise ValueError(f"max_output_error: {self.max_output_error}, expected more than 0 and at most 1")
        if self.target_bits is not None and not 0 < self.target_bits <= 8:
            raise ValueError(f"target_bits: {self.target_bits}, expected more than 0 and at most 8")
        if self.target_bits is not None and not (self.per_channel and self.weight == "symmetric"):
            raise ValueError("target_bits with other weights, expected per_channel = true and weight = symmetric")
        if not self.rate_strength >= 0:
            raise ValueError(f"rate_strength: {self.rate_strength}, expected 0 or more")
        if not 0 <= self.token_frequency <= 1:
            raise ValueError(f"token_frequency: {self.token_frequency}, expected 0 to 1")
        if self.gradient_samples < 1:
            raise ValueError(f"gradient_samples: {self.gradient_samples}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Quantizes ``model`` in place.

        Raises:
            BadInputError: there is something to quantize and nothing to calibrate with, or activations aren't finite.
        """
        skipped = find_foreign(model)
        finder = SiteFinder(keep_float=self.keep_float, min_elements=self.min_elements)
        linears = list(finder.linears(model.graph, skipped))
        convs = [self._without_activation(conv) for conv in finder.convs(model.graph, skipped)]
        if not self.convolutions:
            skipped |= {conv.name: "kept float by the recipe" for conv in convs}
            convs = []
        tables = list(finder.tables(model.graph, skipped)) if self.embeddings else []
        inputs = InputQuantizer(
            method=self.method,
            percentile=self.percentile,
            symmetric=self.activation_range == "symmetric",
            smooth=self.smooth,
            activation=self.activation,
        )
        reshapes = settle_reshapes(model) if linears else 0
        whole, ctx = ctx, replace(ctx, calibration=_spread(ctx.calibration, self.calibration_samples))
        rounding = self.rounding == "gptq" and self.weight == "symmetric"
        wanted = rounding or self.target_bits is not None or ctx.goal_bytes is not None
        seen = inputs.observe(model, linears, convs, ctx, products=wanted)
        convs = self._leave_lossy(convs, seen, inputs, skipped)
        sites = inputs.choose(linears, convs, seen, ctx)
        forms = dict(sites)  # of inputs as they were observed; folding takes the smoothing out of ``sites``
        smoothed, folded = sum(site.scale is not None for site in sites.values()), fold_smoothing(linears, sites)
        if folded:
            linears = list(finder.linears(model.graph, {}))
        fit = self._open_fit(model, linears, tables, whole, skipped)
        if fit is None and self.trains:
            skipped["training"] = "plain int8 is small enough: there are no coarser grids to train on"
        writer = Int8Writer(model.graph, integer=self._integer(ctx))
        hessians = {name: partial(input_hessian, seen[name], form) for name, form in forms.items() if wanted}
        ends = [(seen[conv.source_name].histogram, seen[conv.output.name or ""].histogram) for conv in convs]
        del seen  # what a Hessian is made of goes as soon as it was
        self._write_linears(writer, linears, sites, hessians, ctx, fit)
        for conv, (source, output) in zip(convs, ends, strict=True):
            write_conv(writer, conv, inputs.affine(source), inputs.affine(output), per_channel=self.per_channel)
        guard_float(model.graph)
        for table in tables:
            writer.write_table(table, quantize_weight(table.weight, axis=0))
        gelus = heads = 0
        if linears and writer.integer:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
            heads = settle_heads(model.graph)
            gelus = replace_gelus(model.graph) if self.gelu == "tanh" else 0
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
        weights = [item.weight for group in (linears, convs, tables) for item in group]
        metrics = {
            "linear_layers": float(len(linears)),
            "conv_layers": float(len(convs)),
            "embedding_tables": float(len(tables)),
            "int8_weights": float(sum(weight.size for weight in weights)),
            "smoothed_inputs": float(smoothed),
            "folded_smoothings": float(folded),
            "fast_gelus": float(gelus),
            "settled_reshapes": float(reshapes),
            "heads_in_place": float(heads),
            "per_token_inputs": float(sum(site.per_token for site in sites.values())),
            "calibration_samples": float(sum(batch.rows for batch in ctx.calibration)),
            **({} if fit is None else fit.apply(model, skipped)),
        }
        return StepResult(
            model=model, changed=len(linears) + len(convs) + len(tables), skipped=skipped, metrics=metrics
        )

    def _integer(self, ctx: Context) -> bool:
        form = ctx.target.runtime.int8_form if self.form == "target" else self.form
        return form == "integer"

    def _without_activation(self, conv: Conv) -> Conv:
        """Without its activation where a symmetric scale, which has a negative half, can't stand in for it."""
        return replace(conv, activation=None) if self.activation_range == "symmetric" else conv

    def _leave_lossy(
        self,
        convs: Sequence[Conv],
        seen: Mapping[str, Observed],
        inputs: InputQuantizer,
        skipped: dict[str, str],
    ) -> list[Conv]:
        """The convolutions whose outputs survive uint8; the others are told among the ``skipped``."""
        kept = []
        for conv in convs:
            histogram = seen[conv.output.name or ""].histogram
            lost = quantization_error(histogram, inputs.affine(histogram))
            if lost > self.max_output_error:
                skipped[conv.name] = f"its output in uint8 would lose {lost:.3f} of its energy"
            else:
                kept.append(conv)
        return kept

    def _write_linears(
        self,
        writer: Int8Writer,
        linears: list[Linear],
        sites: Mapping[str, Smoothing],
        hessians: dict[str, partial[npt.NDArray[np.float64]]],
        ctx: Context,
        fit: StorageFit | None,
    ) -> None:
        order = {name: index for index, name in enumerate(sites)}
        samples = sum(batch.rows for batch in ctx.calibration)
        factor: npt.NDArray[np.float64] | None = None
        for linear in ctx.progress.track(
            sorted(linears, key=lambda linear: order[linear.source_name]), "quantizing weights"
        ):
            name = linear.source_name
            if name in hessians:  # the first of those that share this input
                factor = factor_inverse(hessians.pop(name)())
            if fit is not None and factor is not None:
                fit.add_linear(linear, _smoothed(linear, sites[name]), factor, sites[name], samples=samples)
            rounded = self._round(linear, sites[name], factor if self.rounding == "gptq" else None)
            writer.write_linear(linear, rounded, sites[name])

    def _open_fit(
        self, model: ir.Model, linears: Sequence[Linear], tables: Sequence[Table], ctx: Context, skipped: dict[str, str]
    ) -> StorageFit | None:
        """What will move weights onto coarser grids, where the recipe or the budget asks for that."""
        goal = StorageGoal(bits=self.target_bits)
        if self.target_bits is None:
            able = self.fit and self.per_channel and self.weight == "symmetric" and (linears or tables)
            if ctx.goal_bytes is None or not able or plain_bytes(model, linears, tables) <= NEARLY * ctx.goal_bytes:
                return None
            goal = StorageGoal(bytes=ctx.goal_bytes)
        fit = StorageFit(
            goal,
            ctx,
            strength=self.rate_strength,
            samples=self.gradient_samples,
            frequency=self.token_frequency,
            training=self,
        )
        fit.measure(model, linears, tables, skipped)
        return fit

    def _round(self, linear: Linear, site: Smoothing, factor: npt.NDArray[np.float64] | None) -> QuantizedWeight:
        """The int8 weight of ``linear``: its scale, then its rounding."""
        moved = _smoothed(linear, site)
        axis = 1 if self.per_channel else None
        weight = quantize_weight(moved, axis=axis, symmetric=self.weight == "symmetric")
        if factor is None:
            return weight
        return replace(weight, values=round_gptq(moved, factor, np.broadcast_to(weight.scale, moved.shape[1:])))


def _smoothed(linear: Linear, site: Smoothing) -> npt.NDArray[np.float32]:
    """The weight that takes the smoothed input."""
    return linear.weight if site.scale is None else linear.weight * site.scale[:, None]


def _spread(batches: Sequence[Batch], count: int) -> Sequence[Batch]:
    """At most ``count`` of the batches, evenly spread over them."""
    if len(batches) <= count:
        return batches
    return [batches[index * len(batches) // count] for index in range(count)]
