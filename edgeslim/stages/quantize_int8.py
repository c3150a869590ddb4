"""Static int8 quantization of a float ONNX graph, in the form that runs on ONNX Runtime's int8 kernels.

Every MatMul or Gemm with a constant weight gets int8 weights (a scale for each output channel) and a static,
calibrated uint8 scale on its *input*; its output stays float32. Quantizing outputs is what ruins transformers under
other static quantizers: one token a sequence carries activations hundreds of times larger than the rest, and a scale
that spans them leaves nothing for the others. Inputs are harmless by comparison, and the kernels need no more.

Two graph forms (the target's profile picks, ``form`` overrides)::

    integer:  x -> QuantizeLinear -> MatMulIntegerToFloat(int8 weight, scales, bias) -> float
    qdq:      x -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(int8 weight)) -> float

Embedding tables stay int8 at run time, a scale a row: ``Gather(int8) -> Cast -> Mul(Gather(scale))``. The usual
``DequantizeLinear -> Gather`` would dequantize the whole table at every run.

By default the range of each input and its smoothing are searched by the error of the layer's output, and weights are
rounded by GPTQ, so that the output changes least. Smoothing divides the input by a vector before it is quantized (one
``Mul`` at run time, where it pays) and multiplies the weight's rows by it.

Methods: Jacob et al. 2018, arXiv 1712.05877; Xiao et al. 2022, arXiv 2211.10438 (``edgeslim.smoothing``); Frantar et
al. 2022, arXiv 2210.17323 (``edgeslim.gptq``); ranges from distributions as in ``edgeslim.numerics``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Context, StepResult
from edgeslim.gptq import factor_inverse, round_gptq
from edgeslim.graph import constant_array, save_graph
from edgeslim.numerics import (
    QuantizedWeight,
    activation_affine,
    choose_range,
    quantize_weight,
)
from edgeslim.observation import Observed, add_hessians, observe
from edgeslim.session import OrtRunner, open_runner
from edgeslim.smoothing import Smoothing, search_smoothing

__all__ = ["QuantizeInt8"]

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8:
    """Static int8. ``keep_float`` are patterns of node names (``*`` allowed) that are left alone.

    ``method`` chooses activation ranges: from their distribution (``minmax``, ``percentile``, ``entropy``, ``mse``), or
    by the error of the layer's ``output``, the only one that also smooths (``smooth``). ``rounding`` of weights to the
    nearest integer, or by ``gptq``, which needs symmetric weights. ``percentile`` counts for that method only. Weights
    below ``min_elements`` stay float. ``activation`` affine lets the zero point follow the data, symmetric fixes it at
    128; ``weight`` affine gives each channel a zero point.
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
    min_elements: int = 1024
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: {self.percentile}, expected more than 50 and at most 100")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Quantizes ``model`` in place.

        Raises:
            BadInputError: there is something to quantize and nothing to calibrate with, or activations aren't finite.
        """
        skipped: dict[str, str] = {}
        linears = list(self._linears(model.graph, skipped))
        tables = list(self._tables(model.graph, skipped)) if self.embeddings else []
        sites, hessians = self._choose_sites(model, linears, ctx)
        writer = _Writer(model.graph, integer=self._integer(ctx))
        factors: dict[str, npt.NDArray[np.float64]] = {}
        order = {name: index for index, name in enumerate(sites)}
        linears.sort(key=lambda linear: order[linear.source_name])
        for linear in ctx.progress.track(linears, "quantizing weights"):
            name = linear.source_name
            if name in hessians:  # first of those that share this input; the one before is no longer needed
                factors = {name: factor_inverse(hessians.pop(name))}
            writer.write_linear(linear, self._round(linear, sites[name], factors.get(name)), sites[name])
        for table in tables:
            writer.write_table(table)
        if linears and writer.integer:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
        metrics = {
            "linear_layers": float(len(linears)),
            "embedding_tables": float(len(tables)),
            "int8_weights": float(sum(s.weight.size for s in linears) + sum(t.weight.size for t in tables)),
            "smoothed_inputs": float(sum(site.scale is not None for site in sites.values())),
            "calibration_samples": float(sum(batch.rows for batch in ctx.calibration)),
        }
        return StepResult(model=model, changed=len(linears) + len(tables), skipped=skipped, metrics=metrics)

    def _integer(self, ctx: Context) -> bool:
        form = ctx.target.runtime.int8_form if self.form == "target" else self.form
        return form == "integer"

    def _linears(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[_Linear]:
        for node in graph:
            if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv"):
                continue
            name = node.name or node.outputs[0].name or node.op_type
            reason = self._obstacle(node, name)
            if reason:
                skipped[name] = reason
            else:
                yield _linear(node, name)

    def _obstacle(self, node: ir.Node, name: str) -> str:
        """Why a node is left in float, or an empty string."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float):
            return "kept float by the recipe"
        if node.op_type == "Conv":
            return "convolutions are not quantized by this stage yet"
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
            plain = all(_attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            fitting = bias is None or getattr(constant_array(bias), "ndim", 0) == 1
            if not plain or _attribute(node, "transA", 0) or not fitting:
                return "a Gemm with alpha, beta, transA or a bias that isn't constant"
        return ""

    def _tables(self, graph: ir.Graph, skipped: dict[str, str]) -> Iterator[_Table]:
        for node in graph:
            if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
                continue
            weight = constant_array(node.inputs[0])
            if weight is None or weight.dtype != np.float32 or weight.ndim != 2 or _attribute(node, "axis", 0) != 0:
                continue  # shape arithmetic, not an embedding
            name = node.name or node.outputs[0].name or node.op_type
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep_float):
                skipped[name] = "kept float by the recipe"
            elif weight.size < self.min_elements:
                skipped[name] = f"its table has {weight.size} elements, fewer than min_elements = {self.min_elements}"
            else:
                yield _Table(node=node, name=name, weight=weight)

    def _choose_sites(
        self, model: ir.Model, linears: list[_Linear], ctx: Context
    ) -> tuple[dict[str, Smoothing], dict[str, npt.NDArray[np.float64]]]:
        """Range and smoothing of each input, by name, and with GPTQ the Hessians of the quantized inputs."""
        if not linears:
            return {}, {}
        weights: dict[str, list[npt.NDArray[np.float32]]] = {}
        for linear in linears:
            weights.setdefault(linear.source_name, []).append(linear.weight)
        runner = _open_probe(model, [linear.source for linear in linears], ctx)
        seen = observe(runner, tuple(weights), ctx.calibration, seed=ctx.seed, progress=ctx.progress)
        sites = {
            name: self._choose_site(observed, weights[name])
            for name, observed in ctx.progress.track(seen.items(), "choosing ranges", len(seen))
        }
        if self.rounding == "nearest":
            return sites, {}
        return sites, add_hessians(runner, sites, ctx.calibration, progress=ctx.progress)

    def _choose_site(self, observed: Observed, weights: list[npt.NDArray[np.float32]]) -> Smoothing:
        symmetric = self.activation == "symmetric"
        if self.method == "output" and observed.maximum is not None:
            return search_smoothing(observed.rows, weights, observed.maximum, symmetric=symmetric, allowed=self.smooth)
        method = "minmax" if self.method == "output" else self.method
        low, high = choose_range(observed.histogram, method, symmetric=symmetric, percentile=self.percentile)
        return Smoothing(scale=None, affine=activation_affine(low, high, symmetric=symmetric), strength=0, error=0)

    def _round(self, linear: _Linear, site: Smoothing, factor: npt.NDArray[np.float64] | None) -> QuantizedWeight:
        moved = linear.weight if site.scale is None else linear.weight * site.scale[:, None]
        axis = 1 if self.per_channel else None
        weight = quantize_weight(moved, axis=axis, symmetric=self.weight == "symmetric")
        if factor is None or weight.zero_point is not None:
            return weight
        scale = np.broadcast_to(weight.scale, moved.shape[1:])
        return replace(weight, values=round_gptq(moved, factor, scale))


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """A MatMul or Gemm: ``weight`` float32 [in, out]; ``nodes`` are replaced, ``output`` is what they make.

    ``source_name`` names the input as it was in the float graph, and so its range; ``source`` is what feeds it now.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    source_name: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    output: ir.Value

    @property
    def source(self) -> ir.Value:
        value = self.nodes[0].inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True, kw_only=True)
class _Table:
    """An embedding: Gather along axis 0 of ``weight`` float32 [rows, width]."""

    node: ir.Node
    name: str
    weight: npt.NDArray[np.float32]


def _linear(node: ir.Node, name: str) -> _Linear:
    weight = constant_array(node.inputs[1])
    assert weight is not None
    source_name = getattr(node.inputs[0], "name", None) or ""
    if node.op_type == "Gemm":
        bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        oriented = weight.T if _attribute(node, "transB", 0) else weight
        return _Linear(
            name=name, nodes=(node,), source_name=source_name, weight=oriented, bias=bias, output=node.outputs[0]
        )
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type == "Add":
        addition = uses[0].node
        bias = constant_array(addition.inputs[1 - uses[0].idx])
        if bias is not None and bias.shape == (weight.shape[1],):
            nodes = (node, addition)
            return _Linear(
                name=name, nodes=nodes, source_name=source_name, weight=weight, bias=bias, output=addition.outputs[0]
            )
    return _Linear(name=name, nodes=(node,), source_name=source_name, weight=weight, bias=None, output=output)


class _Writer:
    """Replaces float nodes by int8 ones; weights and quantized inputs that several nodes share are written once."""

    def __init__(self, graph: ir.Graph, *, integer: bool) -> None:
        self.graph = graph
        self.integer = integer
        self._sources: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write_linear(self, linear: _Linear, weight: QuantizedWeight, site: Smoothing) -> None:
        name = linear.name
        nodes: list[ir.Node] = []
        quantized, scale, zero = self._quantized_source(linear, site, nodes)
        values = self._constant(f"{name}.weight_int8", weight.values)
        scales = self._constant(f"{name}.weight_scale", weight.scale)
        zeros = None if weight.zero_point is None else self._constant(f"{name}.weight_zero_point", weight.zero_point)
        bias = None if linear.bias is None else self._constant(f"{name}.bias", linear.bias)
        if self.integer:
            inputs = [quantized, values, scale, scales, zero, zeros, bias]
            while inputs[-1] is None:
                inputs.pop()
            nodes.append(ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=f"{name}.int8"))
        else:
            source = ir.node("DequantizeLinear", [quantized, scale, zero], name=f"{name}.input_dequantized")
            operands = [values, scales] if zeros is None else [values, scales, zeros]
            axis = {"axis": 1} if weight.scale.ndim else None
            dequantized = ir.node("DequantizeLinear", operands, axis, name=f"{name}.weight_dequantized")
            product = ir.node("MatMul", [source.outputs[0], dequantized.outputs[0]], name=f"{name}.int8")
            nodes += [source, dequantized, product]
            if bias is not None:
                nodes.append(ir.node("Add", [product.outputs[0], bias], name=f"{name}.biased"))
        self._replace(linear.nodes, nodes, linear.output)

    def write_table(self, table: _Table) -> None:
        weight = quantize_weight(table.weight, axis=0)
        name, index = table.name, table.node.inputs[1]
        values = self._constant(f"{name}.table_int8", weight.values)
        scales = self._constant(f"{name}.table_scale", weight.scale.reshape(-1, 1))
        rows = ir.node("Gather", [values, index], name=f"{name}.rows")
        row_scales = ir.node("Gather", [scales, index], name=f"{name}.row_scales")
        floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.float")
        scaled = ir.node("Mul", [floats.outputs[0], row_scales.outputs[0]], name=f"{name}.scaled")
        self._replace((table.node,), [rows, row_scales, floats, scaled], table.node.outputs[0])

    def _quantized_source(
        self, linear: _Linear, site: Smoothing, nodes: list[ir.Node]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        key = linear.source_name
        if key not in self._sources:
            scale = self._constant(f"{key}.scale", np.float32(site.affine.scale))
            zero = self._constant(f"{key}.zero_point", np.uint8(site.affine.zero_point))
            source = linear.source
            if site.scale is not None:
                factor = self._constant(f"{key}.smoothing", np.float32(1) / site.scale)
                nodes.append(ir.node("Mul", [source, factor], name=f"{key}.smoothed"))
                source = nodes[-1].outputs[0]
            nodes.append(ir.node("QuantizeLinear", [source, scale, zero], name=f"{key}.quantized"))
            self._sources[key] = (nodes[-1].outputs[0], scale, zero)
        return self._sources[key]

    def _constant(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name))
        self.graph.register_initializer(value)
        return value

    def _replace(self, old: tuple[ir.Node, ...], new: list[ir.Node], output: ir.Value) -> None:
        result = new[-1].outputs[0]
        result.type, result.shape, name = output.type, output.shape, output.name
        ir.convenience.replace_nodes_and_values(self.graph, old[-1], old, new, [output], [result])
        result.name = name


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


def _attribute(node: ir.Node, key: str, default: float) -> float:
    attribute = node.attributes.get(key)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT else attribute.as_int()
