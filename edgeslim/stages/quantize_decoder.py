"""A language model's weights on coarse grids: int8 kernels at run time, as many bits as a budget allows in the file.

Each output channel (a row of a matrix) has a step of its own; the integers run on ``MatMulNBits`` of 8 bits, whose
blocks of a row share that step, and are entropy-coded for storage (EntQuant: arXiv 2601.22787, is the idea). One number
δ sets all steps: they are such that no byte can be moved from one channel to another with profit
(``edgeslim.algorithms.allocation``), by the inputs' second moments and the squared gradients of the model's own
log-likelihood (``edgeslim.decoders.decoder_statistics``). Integers are rounded by GPTQ with a rate term. A tied table
is stored once and serves both its readers; what an error costs counts for both.

A file whose matrices are in blocks of 4 bits already is best left on that grid: rounding it anew adds as much error
again. With ``keep = "blocks"`` those matrices stay, their scales with a few bits less
(``edgeslim.decoders.trimmed_blocks``), and only the others, of SmolLM2's file the tied table, take coarser grids.
On 2,000 development tokens of SmolLM2-135M the table alone came to perplexity ratios of 1.0107 at 3.8 bits a weight and
1.0039 at 4.4 (the file has 8.5); scales and minima of 6 significant bits, rounded apart, to 1.019, and of 5 to 1.069.

Everything on coarse grids does worse on that file: 4.3 bits came to 1.141 at 73.0 MB with no moments weighted by
gradients (5,119 of the evaluation's tokens), and to 3.56 with all of them. Most of that were queries, at 3.2 bits alone
6.06: what they do to attention is no matter of second order. Without weights, and with steps of at most 0.4 of the
weights' spread, they came to 1.004 at 3.7 bits, and the whole model to 1.041 at 4.3 bits and 74.0 MB (20,031 tokens).

A goal of fewer bits takes coarser steps than that. A limit that just does makes all matrices equally coarse, which came
to 1.377 at 3.15 bits; 1.2, 1.5 and 1.8 times as much to 1.201, 1.215 and 1.206 (5,119 development tokens).

Part of what is left is learned away where the recipe asks for ``distill_steps``
(``edgeslim.decoders.grid_distillation``): 40 at a rate of 0.004 took 1.210 at 54.1 MB to 1.188 at 54.2 (20,031 tokens).
A rate of 0.02 flips integers by noise: 100 such steps came to 1.322.

Words that calibration gives hardly any weight keep a floor of sensitivity, since it knows too little of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.allocation import GridTensor, Rounded
from edgeslim.algorithms.blockwise import BlockGrid, BlockWeight, count_blocks
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.core import Context, StepResult
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.decoder_statistics import Statistics, collect_statistics, input_name
from edgeslim.decoders.stored_blocks import StoredBlocks
from edgeslim.decoders.trimmed_blocks import count_entropy_bits, trim_scales
from edgeslim.errors import BadInputError
from edgeslim.graphs.block_forms import Arithmetic, arithmetic_levels
from edgeslim.graphs.graph import load_graph
from edgeslim.quantizing.grid_training import GridTrainingOptions

__all__ = ["QuantizeDecoder"]

MIDDLE = 128
KEPT_BITS = 4
LEAST_BITS = 1.0
SAMPLED_COLUMNS = 64
MAX_STEP = 0.4
"""Of a column's spread, the median in a matrix: well before 1, what is predicted to second order means nothing."""
ROOM = 1.3
"""Where a goal needs coarser steps: by so much more than if all matrices had the same."""
LARGEST_STEP = 8.0
TABLE = "model.embed_tokens"


@dataclass(frozen=True, kw_only=True)
class QuantizeDecoder(GridTrainingOptions):
    """Grids such that integers take ``target_bits`` a weight, entropy-coded.

    ``block_size`` is that of the kernel's blocks. ``calibration_windows`` give moments and gradients.
    ``keep`` blocks leaves matrices in a file's blocks of 4 bits, with scales of ``scale_bits``
    significant bits. ``arithmetic`` is the kernels': ``int8`` inputs, or ``mixed``, which takes float for blocks of
    4 bits. ``strength`` weighs the rate term, 1 in theory and 0 without. ``floor`` is the least sensitivity
    of a word, as a share of the mean. ``damping``, of GPTQ, is a share of the mean of the Hessian's diagonal.

    ``distill_steps`` of training follow, each of ``distill_batch_size`` windows of the training text.
    ``distill_rate`` is in steps of each weight's grid, and ``distill_hidden`` weighs hidden states against words.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"
    anew: ClassVar[bool] = True

    target_bits: float = 4.4
    block_size: Literal[32, 64, 128] = 64
    calibration_windows: int = 32
    keep: Literal["nothing", "blocks"] = "nothing"
    scale_bits: int = 7
    arithmetic: Arithmetic = "int8"
    strength: float = 1.0
    floor: float = 0.05
    damping: float = 0.01
    distill_batch_size: int = 4

    def __post_init__(self) -> None:
        GridTrainingOptions.__post_init__(self)
        if self.trains and self.keep == "blocks":
            raise ValueError('distill_steps and keep = "blocks", expected one of the two: blocks that are kept stay')
        if not 1.5 <= self.target_bits <= 8:
            raise ValueError(f"target_bits: {self.target_bits}, expected 1.5 to 8")
        if self.calibration_windows < 1:
            raise ValueError(f"calibration_windows: {self.calibration_windows}, expected at least 1")
        if not 3 <= self.scale_bits <= 11:
            raise ValueError(f"scale_bits: {self.scale_bits}, expected 3 to 11")
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
        sizes = {
            name.removesuffix(".weight"): int(np.prod(shape))
            for name, shape in checkpoint.shape.tensor_shapes().items()
            if shape[1:]
        }
        counts = self._count_kept(checkpoint, sizes)
        paths = [path for path in sizes if path not in counts]
        statistics = collect_statistics(
            checkpoint,
            ctx.calibration[: self.calibration_windows],
            seed=ctx.seed,
            progress=ctx.progress,
            paths=paths,
        )
        delta, entropies, limit = self._find_delta(checkpoint, paths, statistics, self._left_bits(counts, sizes))

        def round_matrix(path: str) -> Rounded:
            tensor = _limited(self._tensor(checkpoint, path, statistics), delta, limit)
            return tensor.round(delta, strength=self.strength)

        source, learned = checkpoint, dict[str, Rounded]()
        metrics: Mapping[str, float] = {}
        if self.distill_steps:
            from edgeslim.decoders.grid_distillation import train_grids  # not above: it imports torch

            rounded = {path: round_matrix(path) for path in ctx.progress.track(paths, "rounding", len(paths))}
            trained = train_grids(checkpoint, rounded, self, ctx)
            source, learned, metrics = trained.checkpoint, {**rounded, **trained.matrices}, trained.metrics

        def encode(_: Checkpoint, name: str) -> StoredBlocks:
            path = name.removesuffix(".weight")
            blocks = checkpoint.read_blocks(name) if path not in paths else None
            if blocks is not None:
                return trim_scales(blocks, self.scale_bits)
            made = learned.pop(path, None) or round_matrix(path)
            counts[path] = _entropy_bits(made.values) * made.values.size
            return self._blocks(made.values, made.steps)

        levels = arithmetic_levels(self.arithmetic, ctx.target.machine)
        path = write_decoder(source, ctx.work_dir / "quantized", encode=encode, levels=levels, progress=ctx.progress)
        return StepResult(
            model=load_graph(path),
            changed=len(sizes),
            metrics={
                "predicted_bits": entropies,
                "bits_per_weight": sum(counts.values()) / sum(sizes.values()),
                "matrices_kept": float(len(sizes) - len(paths)),
                "log2_delta": float(np.log2(delta)),
                "calibration_tokens": float(statistics.tokens),
                **metrics,
            },
        )

    def _count_kept(self, checkpoint: Checkpoint, sizes: Mapping[str, int]) -> dict[str, float]:
        """The bits of the matrices that stay in the file's blocks of 4 bits, by path."""
        counts: dict[str, float] = {}
        for path in sizes if self.keep == "blocks" else ():
            blocks = checkpoint.read_blocks(f"{path}.weight")
            if blocks is not None and blocks.weight.grid.bits <= KEPT_BITS:
                counts[path] = count_entropy_bits(trim_scales(blocks, self.scale_bits))
        return counts

    def _left_bits(self, counts: Mapping[str, float], sizes: Mapping[str, int]) -> float:
        """The bits a weight that matrices which aren't kept may take."""
        left = sum(size for path, size in sizes.items() if path not in counts)
        if not left:
            raise BadInputError(
                "quantize_decoder",
                "a file whose matrices all are blocks of 4 bits",
                expected='one that has others, with keep = "blocks"',
                hint="keep_blocks takes the file as it is",
            )
        bits = (self.target_bits * sum(sizes.values()) - sum(counts.values())) / left
        if not bits >= LEAST_BITS:
            least = (sum(counts.values()) + LEAST_BITS * left) / sum(sizes.values())
            raise BadInputError(
                "quantize_decoder: target_bits",
                str(self.target_bits),
                expected=f"at least {least:.2f} where the file's blocks are kept",
                hint='keep = "nothing" goes lower',
            )
        return bits

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

    def _find_delta(
        self, checkpoint: Checkpoint, paths: Sequence[str], found: Statistics, goal: float
    ) -> tuple[float, float, float]:
        """The δ at which integers rounded to nearest take ``goal`` bits, those bits, and the limit on steps.

        Entropies are those of some of the columns. The limit is ``MAX_STEP``, or ``ROOM`` times
        what the goal takes where that is more.
        """
        samples = []
        for path in paths:
            tensor = self._tensor(checkpoint, path, found)
            chosen = np.linspace(0, tensor.weight.shape[1] - 1, SAMPLED_COLUMNS).astype(np.intp)
            steps = tensor.unit_steps[chosen]
            samples.append(
                (tensor.weight[:, chosen], steps, tensor.least_steps[chosen], _coarseness(tensor), tensor.weight.size)
            )
        total = sum(size for *_, size in samples)

        def bits(power: float, limit: float) -> float:
            found = 0.0
            for weight, unit, least, coarseness, size in samples:
                scaled = min(2.0**power, limit / coarseness) * unit
                found += size * _entropy_bits(np.rint(weight / np.maximum(scaled, least)).astype(np.int16))
            return found / total

        low, high, limit = -60.0, 60.0, MAX_STEP
        while bits(high, limit / ROOM) > goal and limit < LARGEST_STEP:
            limit *= 1.05
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if bits(middle, limit) > goal else (low, middle)
        return float(2.0**high), bits(high, limit), limit

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


def _limited(tensor: GridTensor, delta: float, limit: float) -> GridTensor:
    """``tensor`` with its sensitivity raised, where at ``delta`` its steps would exceed ``limit`` spreads."""
    excess = delta * _coarseness(tensor) / limit
    return tensor if excess <= 1 else replace(tensor, gradients=tensor.gradients * excess**2)


def _entropy_bits(values: npt.NDArray[np.signedinteger]) -> float:
    """Order-0 entropy of integers, bits each, their columns taken together."""
    counts = np.bincount(values.ravel().astype(np.int64) - int(values.min()))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())
