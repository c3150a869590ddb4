"""A language model compressed layer by layer, from its checkpoint straight into a graph: for models that don't fit.

Calibration, pruning, factorization and quantization take one layer after the other
(``edgeslim.decoders.layer_stream``): each matrix sees the inputs that the compressed layers before it make. The peak is
the embeddings, a layer or two, and the calibration windows' hidden states, however deep the model is. (``edgeslim
build`` also writes and runs the float graph, to compare with.)

Within a layer a matrix is divided first (``keep``: activation-whitened SVD, Wang et al. 2024, arXiv 2403.07378, unless
that loses more than ``max_error`` of its squared output), or pruned (``sparsity``,
``pattern``: SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774), and what is left goes into blocks of ``bits``.
``gptq`` makes up for rounding (Frantar et al. 2022, arXiv 2210.17323); pruned matrices are rounded to nearest, since
making up would fill their zeros. Embeddings and output layer, which are outside of the layers, take nearest levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.block_gptq import round_gptq_blocks
from edgeslim.algorithms.blockwise import round_blocks
from edgeslim.algorithms.factorization import whitened_svd
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.obs import prune_obs
from edgeslim.algorithms.pruning import parse_pattern
from edgeslim.core import Context, StepResult
from edgeslim.decoders.decoder_graph import Encoded, as_floats, write_decoder
from edgeslim.decoders.layer_stream import StreamedEncode, as_dense
from edgeslim.decoders.rounded import RoundBlocks
from edgeslim.decoders.stored_blocks import StoredBlocks
from edgeslim.errors import BadInputError
from edgeslim.graphs.block_forms import Arithmetic, arithmetic_levels
from edgeslim.graphs.graph import load_graph

__all__ = ["StreamDecoder"]

RANK_MULTIPLE = 8
MOST_ZEROS = 0.01
Matrix = npt.NDArray[np.float32]
Moment = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StreamDecoder:
    """``bits`` of a weight: 4 or 8 in blocks of ``block_size``, or 32 for floats, by ``algorithm`` gptq or rtn.

    ``sparsity`` or ``pattern`` N:M prunes, ``keep`` is the share of a matrix's parameters that two factors may have;
    a matrix stays whole where that would lose more than ``max_error`` of its squared output. ``damping`` is a share of
    the mean of the moments' diagonal. ``refine`` moves GPTQ's scales and levels once more, for several times the time.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"
    anew: ClassVar[bool] = True

    bits: Literal[4, 8, 32] = 4
    block_size: Literal[32, 64, 128] = 32
    algorithm: Literal["gptq", "rtn"] = "gptq"
    symmetric: bool = True
    refine: bool = True
    sparsity: float = 0.0
    pattern: str = "none"
    keep: float = 1.0
    max_error: float = 1.0
    arithmetic: Arithmetic = "target"
    calibration_windows: int = 32
    damping: float = 0.01

    def __post_init__(self) -> None:
        parse_pattern(self.pattern)
        for name, low in (("sparsity", 0.0), ("keep", 1e-9), ("max_error", 0.0), ("damping", 1e-9)):
            if not low <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected {low:g} to 1")
        if self.calibration_windows < 1:
            raise ValueError(f"calibration_windows: {self.calibration_windows}, expected at least 1")
        if self.keep < 1 and self.prunes:
            raise ValueError("keep beside sparsity or pattern, expected one of them")
        if self.bits == 32 and self.keep == 1 and not self.prunes:
            raise ValueError("bits = 32 and nothing else, expected fewer bits, sparsity, a pattern or keep")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """A new graph instead of ``model``, from the checkpoint that it was written from.

        Raises:
            BadInputError: the source is no language model, or there is nothing to calibrate with.
        """
        if ctx.checkpoint is None:
            raise BadInputError(
                "stream_decoder", "a source that is no Llama-shaped language model", expected='task = "causal-lm"'
            )
        if any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in model.graph):
            raise BadInputError("stream_decoder", "a graph that is quantized already", expected="the float graph")
        compress = LayerCompressor(options=self)
        table = as_floats if self.bits == 32 else RoundBlocks(bits=self.bits, block_size=self.block_size)
        encode = StreamedEncode(
            ctx.checkpoint,
            ctx.calibration[: self.calibration_windows],
            compress,
            table=table,
        )
        levels = arithmetic_levels(self.arithmetic, ctx.target.machine)
        path = write_decoder(
            ctx.checkpoint, ctx.work_dir / "streamed", encode=encode, levels=levels, progress=ctx.progress
        )
        return StepResult(
            model=load_graph(path), changed=len(compress.lost), skipped=compress.skipped, metrics=compress.metrics()
        )

    @property
    def prunes(self) -> bool:
        """Whether weights become zero."""
        return self.sparsity > 0 or self.pattern != "none"


@dataclass(kw_only=True)
class LayerCompressor:
    """What ``StreamDecoder`` does to one matrix; ``lost`` is the share of its squared output, by path."""

    options: StreamDecoder
    lost: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    zeros: int = 0
    weights: int = 0
    kept: int = 0

    def __call__(self, path: str, weight: Matrix, moment: Moment) -> Encoded:
        """The matrix [out, in] pruned, divided, rounded, by the moments [in, in] of its inputs."""
        options = self.options
        factors = self._divide(path, weight, moment)
        if factors is not None:
            first, second = factors
            inner = first.astype(np.float64) @ moment @ first.T
            made: Encoded = (self._round(first, moment), self._round(second, inner))
        else:
            pruned = self._prune(path, weight, moment)
            made = self._round(pruned, moment, algorithm="rtn" if options.prunes else options.algorithm)
        dense = as_dense(made)
        self.zeros += int(np.count_nonzero(dense == 0))
        self.weights += weight.size
        self.kept += weight.size if factors is None else sum(factor.size for factor in factors)
        self.lost[path] = _lost_share(weight, dense, moment)
        return made

    def metrics(self) -> Mapping[str, float]:
        """For a report."""
        return {
            "matrices": float(len(self.lost)),
            "lost_mean": float(np.mean(list(self.lost.values()))),
            "lost_most": max(self.lost.values()),
            "sparsity": self.zeros / max(self.weights, 1),
            "kept": self.kept / max(self.weights, 1),
        }

    def _divide(self, path: str, weight: Matrix, moment: Moment) -> tuple[Matrix, Matrix] | None:
        """``A [rank, in]`` and ``B [out, rank]``, or nothing where the matrix stays whole."""
        options = self.options
        if options.keep == 1:
            return None
        if np.count_nonzero(weight == 0) > MOST_ZEROS * weight.size:
            self.skipped[path] = "an earlier step pruned it, and two factors would fill its zeros"
            return None
        spectrum = whitened_svd(weight.T, moment)
        multiple = RANK_MULTIPLE if options.bits == 32 else options.block_size
        rank = int(options.keep * weight.size / sum(weight.shape)) // multiple * multiple
        errors = spectrum.errors()
        if rank < 1 or errors[rank] > options.max_error * errors[0]:
            self.skipped[path] = "two factors would lose too much" if rank else "it is too small for two factors"
            return None
        left, right = spectrum.factors(rank)
        return np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)

    def _prune(self, path: str, weight: Matrix, moment: Moment) -> Matrix:
        options = self.options
        pattern = parse_pattern(options.pattern)
        if not options.prunes:
            return weight
        if pattern is not None and weight.shape[1] % pattern[1]:
            self.skipped[path] = f"its {weight.shape[1]} inputs aren't a multiple of {pattern[1]}"
            return weight
        upper = factor_inverse(moment, options.damping)
        return prune_obs(weight.T, upper, sparsity=options.sparsity, pattern=pattern).T

    def _round(self, weight: Matrix, moment: Moment, algorithm: str | None = None) -> Matrix | StoredBlocks:
        options = self.options
        if options.bits == 32:
            return np.ascontiguousarray(weight)
        if (algorithm or options.algorithm) == "rtn":
            made = round_blocks(
                weight,
                bits=options.bits,
                block_size=options.block_size,
                symmetric=options.symmetric,
                search=not options.prunes,
            )
        else:
            made = round_gptq_blocks(
                weight,
                moment,
                bits=options.bits,
                block_size=options.block_size,
                symmetric=options.symmetric,
                damping=options.damping,
                refine=options.refine,
            )
        return StoredBlocks(weight=made)


def _lost_share(weight: Matrix, dense: Matrix, moment: Moment) -> float:
    error = weight.astype(np.float64) - dense
    whole = float(np.einsum("oi,oi->", weight @ moment, weight))
    return float(np.einsum("oi,oi->", error @ moment, error)) / max(whole, 1e-300)
