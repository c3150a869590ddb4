"""A language model's weights on coarse grids: int8 kernels at run time, as many bits as a budget allows in the file.

Each output channel (a row of a matrix) has a step of its own; the integers run on ``MatMulNBits`` of 8 bits, whose
blocks of a row share that step, and are entropy-coded for storage (EntQuant: arXiv 2601.22787, is the idea). One number
δ sets all steps: they are such that no byte can be moved from one channel to another with profit
(``edgeslim.algorithms.allocation``), by the inputs' second moments and the squared gradients of the model's own
log-likelihood (``edgeslim.decoders.decoder_statistics``). Integers are rounded by GPTQ with a rate term. A tied table
is stored once and serves both its readers; what an error costs counts for both.

On SmolLM2-135M, 4.3 bits came to 73.0 MB of weights and a perplexity ratio of 1.141 on 5,119 development tokens (0.34
of float32's time a token) while moments were not weighted by gradients: far from what blocks of 4 bits give. What the
weights of tokens and the limit on steps improve is not measured yet.

Words that calibration gives hardly any weight keep a floor of sensitivity, since it knows too little of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.allocation import GridTensor
from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight, count_blocks
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.core import Context, StepResult
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.decoder_statistics import Statistics, collect_statistics, input_name
from edgeslim.decoders.stored_blocks import StoredBlocks
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph

__all__ = ["QuantizeDecoder"]

MIDDLE = 128
SAMPLED_COLUMNS = 64
MAX_STEP = 1.0
"""Of a column's spread, the median in a matrix: past it nothing predicted to second order means anything."""
TABLE = "model.embed_tokens"


@dataclass(frozen=True, kw_only=True)
class QuantizeDecoder:
    """Grids such that integers take ``target_bits`` a weight, entropy-coded.

    ``block_size`` is that of the kernel's blocks. ``calibration_windows`` give moments and gradients.
    ``strength`` weighs the rate term, 1 in theory and 0 without. ``floor`` is the least sensitivity
    of a word, as a share of the mean. ``damping``, of GPTQ, is a share of the mean of the Hessian's diagonal.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    target_bits: float = 4.4
    block_size: Literal[32, 64, 128] = 64
    calibration_windows: int = 32
    strength: float = 1.0
    floor: float = 0.05
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 1.5 <= self.target_bits <= 8:
            raise ValueError(f"target_bits: {self.target_bits}, expected 1.5 to 8")
        if self.calibration_windows < 1:
            raise ValueError(f"calibration_windows: {self.calibration_windows}, expected at least 1")
        for name in ("strength", "floor", "damping"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"{name}: {getattr(self, name)}, expected 0 to 10")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """A new graph instead of ``model``, from the checkpoint that it was written from.

        Raises:
            BadInputError: the source is no language model, or there is nothing to calibrate with.
        """
        checkpoint: Checkpoint | None = ctx.checkpoint
        if checkpoint is None:
            raise BadInputError(
                "quantize_decoder",
                "a source that is no Llama-shaped language model",
                expected='task = "causal-lm"',
                hint="quantize_int4 and quantize_int8 take any graph",
            )
        if any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in model.graph):
            raise BadInputError("quantize_decoder", "a graph that is quantized already", expected="the float graph")
        statistics = collect_statistics(
            checkpoint,
            ctx.calibration[: self.calibration_windows],
            seed=ctx.seed,
            progress=ctx.progress,
        )
        paths = [name.removesuffix(".weight") for name, shape in checkpoint.shape.tensor_shapes().items() if shape[1:]]
        delta, entropies = self._find_delta(checkpoint, paths, statistics)
        counts: dict[str, float] = {}

        def encode(source: Checkpoint, name: str) -> StoredBlocks:
            path = name.removesuffix(".weight")
            made = _limited(self._tensor(source, path, statistics), delta).round(delta, strength=self.strength)
            counts[path] = _entropy_bits(made.values) * made.values.size
            return self._blocks(made.values, made.steps)

        path = write_decoder(checkpoint, ctx.work_dir / "quantized", encode=encode, progress=ctx.progress)
        weights = sum(np.prod(checkpoint.shape.tensor_shapes()[f"{item}.weight"]) for item in paths)
        return StepResult(
            model=load_graph(path),
            changed=len(paths),
            metrics={
                "predicted_bits": entropies,
                "bits_per_weight": sum(counts.values()) / float(weights),
                "log2_delta": float(np.log2(delta)),
                "calibration_tokens": float(statistics.tokens),
            },
        )

    def _tensor(self, checkpoint: Checkpoint, path: str, found: Statistics) -> GridTensor:
        """The matrix ``path`` as its steps are chosen; a table has gradients of both its uses."""
        shape = checkpoint.shape
        table = path == TABLE
        moments = found.moments["lm_head"] if path in (TABLE, "lm_head") else found.moments[input_name(path)]
        upper = factor_inverse(moments.astype(np.float64), self.damping)
        if table and not shape.tied:
            upper = np.eye(shape.hidden)
        spread = float(np.mean(1 / np.square(np.diagonal(upper))))
        if path in (TABLE, "lm_head"):
            gradients = np.zeros(shape.vocabulary)
            if shape.tied or not table:
                gradients += found.logit_fisher
            if table:
                gradients += found.lookup_fisher / spread
            gradients = np.maximum(gradients, self.floor * float(gradients.mean()))
        else:
            gradients = found.gradients[path]
        weight = np.ascontiguousarray(checkpoint.read(f"{path}.weight").T)
        return GridTensor(name=path, weight=weight, upper=upper, gradients=gradients)

    def _find_delta(self, checkpoint: Checkpoint, paths: Sequence[str], found: Statistics) -> tuple[float, float]:
        """The δ at which integers rounded to nearest take ``target_bits``, by their entropy on some of the columns."""
        samples = []
        for path in paths:
            tensor = self._tensor(checkpoint, path, found)
            chosen = np.linspace(0, tensor.weight.shape[1] - 1, SAMPLED_COLUMNS).astype(np.intp)
            steps = tensor.unit_steps[chosen]
            samples.append(
                (tensor.weight[:, chosen], steps, tensor.least_steps[chosen], _coarseness(tensor), tensor.weight.size)
            )
        total = sum(size for *_, size in samples)

        def bits(power: float) -> float:
            found = 0.0
            for weight, unit, least, coarseness, size in samples:
                scaled = min(2.0**power, MAX_STEP / coarseness) * unit
                found += size * _entropy_bits(np.rint(weight / np.maximum(scaled, least)).astype(np.int16))
            return found / total

        low, high = -60.0, 60.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if bits(middle) > self.target_bits else (low, middle)
        return float(2.0**high), bits(high)

    def _blocks(self, values: npt.NDArray[np.int8], steps: npt.NDArray[np.float32]) -> StoredBlocks:
        """Integers [in, out] and a step a column as blocks whose scales are the same along a row."""
        blocks = count_blocks(len(values), self.block_size)
        scale = np.repeat(steps[:, None], blocks, axis=1).astype(np.float32)
        levels = (values.T.astype(np.int16) + MIDDLE).astype(np.uint8)
        grid = BlockGrid(bits=8, block_size=self.block_size, scale=scale, zero_point=None)
        return StoredBlocks(weight=BlockWeight(grid=grid, levels=np.ascontiguousarray(levels)))


def _coarseness(tensor: GridTensor) -> float:
    """The median of a column's step over its weights' spread, where δ is 1."""
    spread = np.sqrt(np.square(tensor.weight, dtype=np.float64).mean(axis=0))
    return float(np.median(tensor.unit_steps / np.maximum(spread, 1e-12)))


def _limited(tensor: GridTensor, delta: float) -> GridTensor:
    """``tensor`` with its sensitivity raised, where at ``delta`` its steps would exceed ``MAX_STEP`` spreads."""
    excess = delta * _coarseness(tensor) / MAX_STEP
    return tensor if excess <= 1 else replace(tensor, gradients=tensor.gradients * excess**2)


def _entropy_bits(values: npt.NDArray[np.signedinteger]) -> float:
    """Order-0 entropy of integers, bits each, their columns taken together."""
    counts = np.bincount(values.ravel().astype(np.int64) - int(values.min()))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())
