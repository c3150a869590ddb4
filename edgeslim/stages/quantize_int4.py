"""Weights in blocks of 4 or 8 bits, on ONNX Runtime's weight-only kernels.

Each row of a weight matrix is cut into blocks with a scale each (``edgeslim.algorithms.blockwise``); activations stay
float in the graph, and inside the kernel become int8, a scale a block, where the machine has dot products of bytes. A
linear layer becomes ``MatMulNBits``, an embedding ``GatherBlockQuantized`` (``edgeslim.graphs.block_forms``); a matrix
that both read, such as tied embeddings, is stored once.

Rounding, by ``algorithm``: ``rtn`` to the nearest level, scales fitted to the weights; ``gptq`` so that the layers'
outputs change least (``edgeslim.algorithms.block_gptq``: Frantar et al. 2022, arXiv 2210.17323, with scales solved for
again and levels moved by coordinate descent, Behdin et al. 2023, arXiv 2309.01885); ``awq`` to nearest after scaling
the inputs (``edgeslim.algorithms.awq``: Lin et al. 2023, arXiv 2306.00978), ``awq_gptq`` by GPTQ after it; ``hqq`` by a
norm that forgives outliers, without data (``edgeslim.algorithms.hqq``: Badri & Shaji 2023). Tables are rounded to
nearest, or by ``hqq``.

Where data is read, layers' biases take up what rounding does to their mean outputs, so that only what varies about the
mean counts as error; a layer without a bias gets one.

With ``max_bytes`` or ``target_bits`` the bits and block sizes are chosen for each matrix
(``edgeslim.quantizing.block_choice``): those that change the model's output least, as measured on calibration samples,
within that many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.algorithms.block_gptq import round_gptq_blocks
from edgeslim.algorithms.blockwise import BLOCK_SIZES, BlockWeight, round_blocks
from edgeslim.algorithms.hqq import round_hqq
from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.block_forms import QDQ_OPSET, BlockWriter, accuracy_level
from edgeslim.graphs.graph import raise_opset
from edgeslim.graphs.graph_weights import find_foreign
from edgeslim.graphs.int8_forms import MICROSOFT
from edgeslim.graphs.weight_probe import WeightProbe
from edgeslim.quantizing.block_choice import choose_grids, matrix_bytes
from edgeslim.quantizing.block_sites import Matrix, find_matrices
from edgeslim.quantizing.input_scaling import Scaled, scale_inputs
from edgeslim.quantizing.moments import Moments, collect_moments

__all__ = ["QuantizeInt4"]

Hessians = Mapping[str, npt.NDArray[np.float64]]
MomentsByName = Mapping[str, Moments]


@dataclass(frozen=True, kw_only=True)
class QuantizeInt4:
    """Blocks of 4 or 8 bits. ``keep_float`` are patterns of node names (``*`` allowed) that are left alone.

    ``bits`` and ``block_size`` (16 to 256, a power of two) hold for linear layers, and for a table that one of them
    shares; ``embedding_bits`` and ``embedding_block_size`` for the other tables, which ``embeddings`` false leaves
    float. ``weight`` affine gives each block a zero point. ``max_bytes``, or ``target_bits`` a weight, scales and zero
    points included, choose bits and block sizes instead. ``form`` qdq writes plain ONNX of opset 21 for the linear
    layers, which the runtime fuses at load. ``accuracy_level`` is MatMulNBits' own: 4 computes with int8 inputs, 0 in
    float; ``target`` follows the machine. ``damping``, of GPTQ, is a share of the mean of the Hessian's diagonal.
    Weights below ``min_elements`` stay float.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    algorithm: Literal["gptq", "rtn", "awq", "awq_gptq", "hqq"] = "gptq"
    bits: Literal[4, 8] = 4
    block_size: int = 32
    weight: Literal["symmetric", "affine"] = "symmetric"
    embeddings: bool = True
    embedding_bits: Literal[4, 8] = 4
    embedding_block_size: int = 32
    target_bits: float | None = None
    max_bytes: int | None = None
    form: Literal["packed", "qdq"] = "packed"
    accuracy_level: Literal["target", 0, 1, 4] = "target"
    damping: float = 0.03
    min_elements: int = 1024
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("block_size", "embedding_block_size"):
            size = getattr(self, name)
            if size not in BLOCK_SIZES:
                raise ValueError(f"{name}: {size}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.target_bits is not None and self.max_bytes is not None:
            raise ValueError("target_bits and max_bytes, expected one of them")
        if self.target_bits is not None and not 4 <= self.target_bits <= 9:
            raise ValueError(f"target_bits: {self.target_bits}, expected 4 to 9")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes: {self.max_bytes}, expected at least 1")
        if not 0 < self.damping <= 10:
            raise ValueError(f"damping: {self.damping}, expected more than 0 and at most 10")
        if self.min_elements < 1:
            raise ValueError(f"min_elements: {self.min_elements}, expected at least 1")

    @property
    def symmetric(self) -> bool:
        """Whether blocks have no zero points."""
        return self.weight == "symmetric"

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Quantizes ``model`` in place.

        Raises:
            BadInputError: there is nothing to calibrate with, activations aren't finite, the target doesn't know the
                opset that the form takes, or ``max_bytes`` or ``target_bits`` are out of reach.
        """
        skipped = find_foreign(model)
        matrices = self._find(model, skipped)
        self._check_opset(matrices, ctx)
        moments = self._moments(model, matrices, ctx)
        scaled = Scaled(moments=moments, folded=0, multiplied=0)
        if self.algorithm.startswith("awq"):
            scaled = scale_inputs(
                model.graph,
                matrices,
                moments,
                bits=self.bits,
                block_size=self.block_size,
                symmetric=self.symmetric,
                progress=ctx.progress,
            )
            matrices = self._find(model, {})
        hessians = {matrix.name: _sum(scaled.moments, matrix) for matrix in matrices if matrix.linears and moments}
        grids = self._choose(model, matrices, hessians, ctx)
        tracked = ctx.progress.track(matrices, "quantizing weights", len(matrices))
        rounded = {
            matrix.name: self._round(matrix, hessians.get(matrix.name), grids[matrix.name]) for matrix in tracked
        }
        if self.form == "qdq" and any(matrix.linears for matrix in matrices):
            raise_opset(model, QDQ_OPSET)
        writer = BlockWriter(model.graph, qdq=self.form == "qdq", level=self._levels(ctx))
        for matrix in matrices:
            made = rounded[matrix.name]
            writer.write(_correct_biases(matrix, made, scaled.moments) if moments else matrix, made)
        if matrices:
            model.graph.opset_imports.setdefault(MICROSOFT, 1)
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
        return StepResult(
            model=model,
            changed=sum(matrix.readers for matrix in matrices),
            skipped=skipped,
            metrics={
                **self._metrics(matrices, grids, ctx),
                "inputs_scaled_by_folding": float(scaled.folded),
                "inputs_scaled_by_mul": float(scaled.multiplied),
            },
        )

    @property
    def _mixed(self) -> bool:
        return self.target_bits is not None or self.max_bytes is not None

    def _find(self, model: ir.Model, skipped: dict[str, str]) -> list[Matrix]:
        return find_matrices(
            model.graph,
            embeddings=self.embeddings,
            min_elements=self.min_elements,
            keep_float=self.keep_float,
            skipped=skipped,
        )

    def _check_opset(self, matrices: Sequence[Matrix], ctx: Context) -> None:
        if self.form == "qdq" and matrices and ctx.target.runtime.opset_max < QDQ_OPSET:
            raise BadInputError(
                'quantize_int4: form = "qdq"',
                f"a target that knows opsets up to {ctx.target.runtime.opset_max}",
                expected=f"opset {QDQ_OPSET}, in which DequantizeLinear takes blocks",
                hint='form = "packed" needs no newer opset',
            )

    def _levels(self, ctx: Context) -> dict[int, int]:
        if self.accuracy_level != "target":
            return dict.fromkeys((4, 8), self.accuracy_level)
        machine = ctx.target.machine
        return {bits: accuracy_level(machine.isa, machine.features, bits) for bits in (4, 8)}

    def _moments(self, model: ir.Model, matrices: Sequence[Matrix], ctx: Context) -> dict[str, Moments]:
        """The moments of the linear layers' inputs by name, where the algorithm or the choice takes them."""
        names = list(dict.fromkeys(linear.source_name for matrix in matrices for linear in matrix.linears))
        if not names or (self.algorithm in ("rtn", "hqq") and not self._mixed):
            return {}
        probe = WeightProbe(model, matrices, ctx.work_dir / "moments")
        return collect_moments(probe.with_weights({}, names), names, ctx.calibration, progress=ctx.progress)

    def _round(self, matrix: Matrix, hessian: npt.NDArray[np.float64] | None, grid: tuple[int, int]) -> BlockWeight:
        bits, size = grid
        if hessian is not None and self.algorithm.endswith("gptq"):
            return round_gptq_blocks(
                matrix.weight,
                hessian,
                bits=bits,
                block_size=size,
                symmetric=self.symmetric,
                damping=self.damping,
            )
        rounding = round_hqq if self.algorithm == "hqq" else round_blocks
        return rounding(matrix.weight, bits=bits, block_size=size, symmetric=self.symmetric)

    def _choose(
        self, model: ir.Model, matrices: Sequence[Matrix], hessians: Hessians, ctx: Context
    ) -> dict[str, tuple[int, int]]:
        """Bits and block size of each matrix, by its name."""
        if not self._mixed or not matrices:
            fixed = {True: (self.bits, self.block_size), False: (self.embedding_bits, self.embedding_block_size)}
            return {matrix.name: fixed[bool(matrix.linears)] for matrix in matrices}
        weights = sum(matrix.weight.size for matrix in matrices)
        limit = int((self.target_bits or 0) * weights / 8) if self.max_bytes is None else self.max_bytes
        if not ctx.calibration:
            raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
        probe = WeightProbe(model, matrices, ctx.work_dir / "choice")
        try:
            chosen = choose_grids(
                matrices,
                hessians,
                probe,
                ctx.calibration,
                limit,
                symmetric=self.symmetric,
                progress=ctx.progress,
            )
        except ValueError as error:
            got, _, expected = str(error).partition(", expected ")
            name = "target_bits" if self.max_bytes is None else "max_bytes"
            raise BadInputError(f"quantize_int4: {name}", got, expected=expected) from error
        return {name: (choice.bits, choice.block_size) for name, choice in chosen.items()}

    def _metrics(
        self, matrices: Sequence[Matrix], grids: Mapping[str, tuple[int, int]], ctx: Context
    ) -> dict[str, float]:
        """Counts, bits a weight with scales and zero points, and bytes in memory by kind."""
        sizes = {
            matrix.name: matrix_bytes(matrix, *grids[matrix.name], symmetric=self.symmetric) for matrix in matrices
        }
        weights = sum(matrix.weight.size for matrix in matrices)
        return {
            "linear_layers": float(sum(len(matrix.linears) for matrix in matrices)),
            "embedding_tables": float(sum(len(matrix.tables) for matrix in matrices)),
            "tied_matrices": float(sum(matrix.readers > 1 for matrix in matrices)),
            "weights": float(weights),
            "weights_of_8_bits": float(sum(m.weight.size for m in matrices if grids[m.name][0] == 8)),
            "bits_per_weight": 8 * sum(sizes.values()) / weights if weights else 0.0,
            "linear_bytes": float(sum(sizes[matrix.name] for matrix in matrices if matrix.linears)),
            "embedding_bytes": float(sum(sizes[matrix.name] for matrix in matrices if not matrix.linears)),
            "calibration_samples": float(sum(batch.rows for batch in ctx.calibration)),
        }


def _sum(moments: MomentsByName, matrix: Matrix) -> npt.NDArray[np.float64]:
    """The centred second moments of all inputs that a matrix meets."""
    parts = [moments[linear.source_name].centered() for linear in matrix.linears]
    return parts[0] if len(parts) == 1 else np.asarray(np.sum(parts, axis=0))


def _correct_biases(matrix: Matrix, made: BlockWeight, moments: MomentsByName) -> Matrix:
    """``matrix`` with its layers' biases moved by what rounding does to their mean outputs."""
    lost = matrix.weight.astype(np.float64) - made.dequantize()
    linears = []
    for linear in matrix.linears:
        bias = lost @ moments[linear.source_name].mean + (0 if linear.bias is None else linear.bias)
        linears.append(replace(linear, bias=bias.astype(np.float32)))
    return replace(matrix, linears=tuple(linears))
