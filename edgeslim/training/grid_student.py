"""An exported graph whose weights are trained on the grids that they will be stored on.

Each weight has a latent one (``edgeslim.training.grid_latents``). Inputs are rounded as the int8 kernels will round
them. Biases and the vectors of normalizations are trained along; they are float in the file anyway.

The teacher is the same graph with the weights that it came with. Two differences are added up: that of the task's
answer (1 - cosine of vectors, or the squared change), and that of what the layers take, over the teacher's own mean
square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeslim.algorithms.pruning import keep_zeros
from edgeslim.algorithms.rate import LEVELS
from edgeslim.algorithms.smoothing import MIDDLE, Smoothing
from edgeslim.torch_graph import Objective, TorchGraph
from edgeslim.training.grid_latents import VECTOR_RATE, Latents, first_latent, round_latent
from edgeslim.training.objectives import cosine_loss, hidden_loss

__all__ = ["GridLoss", "GridStudent", "SimulatedTable", "SimulatedWeight", "round_input"]


@dataclass(frozen=True, kw_only=True)
class SimulatedWeight:
    """Operand 1 of the node that makes the value ``output``, in the layout of that operand.

    ``weight`` is the float one as it will be rounded, ``values`` the integers so far, and ``steps`` broadcasts over
    them; ``form`` says how the node's input is rounded.
    """

    output: str
    weight: npt.NDArray[np.float32]
    values: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float32]
    form: Smoothing


@dataclass(frozen=True, kw_only=True)
class SimulatedTable:
    """An embedding table [rows, width] whose rows the Gather takes that makes ``output``; ``steps`` is [rows, 1].

    Of its rows those in ``learned`` are trained, the others stay as they were rounded.
    """

    output: str
    weight: npt.NDArray[np.float32]
    values: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float32]
    learned: npt.NDArray[np.int64]


class GridStudent(Latents):
    """``graph`` with ``weights`` and ``tables`` on their grids.

    What is trained are the weights, the rows of tables that may be, and the graph's ``vectors`` that are named.
    """

    def __init__(
        self,
        graph: TorchGraph,
        weights: Sequence[SimulatedWeight],
        *,
        tables: Sequence[SimulatedTable] = (),
        vectors: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.graph = graph
        self._weights = {one.output: (number, one) for number, one in enumerate(weights)}
        self._steps = [torch.from_numpy(np.ascontiguousarray(one.steps, np.float32)) for one in weights]
        self._tables = {one.output: _Table(one) for one in tables}
        self._vectors = tuple(vectors)
        masks = {number: keep_zeros(one.weight) for number, one in enumerate(weights)}
        self._alive = {number: torch.from_numpy(mask).float() for number, mask in masks.items() if mask is not None}
        self.latents = nn.ParameterList(
            nn.Parameter(first_latent(one.weight, one.values, one.steps)) for one in weights
        )
        self.rows = nn.ModuleList(self._tables.values())
        self.offsets = nn.ParameterList(nn.Parameter(torch.zeros_like(graph.weights[name])) for name in vectors)

    def all_latents(self) -> list[Tensor]:
        """The weights and rows that are trained, in steps."""
        return [*self.latents, *(table.latent for table in self._tables.values())]

    def alive(self) -> list[tuple[Tensor, Tensor]]:
        """The latent weights of layers that were pruned, each with what is 0 where a weight is."""
        return [(self.latents[number], alive) for number, alive in self._alive.items()]

    def vectors(self) -> dict[str, Tensor]:
        """The vectors as they are by now, by the names of their initializers."""
        found = {}
        for name, offset in zip(self._vectors, self.offsets, strict=True):
            start = self.graph.weights[name]
            found[name] = start + offset * start.square().mean().sqrt()
        return found

    def trained_vectors(self) -> dict[str, npt.NDArray[np.float32]]:
        """The vectors as arrays."""
        return {name: vector.detach().numpy() for name, vector in self.vectors().items()}

    def trained_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Each weight and table in steps of its grid, by the value that it makes: their nearest integers count."""
        found = {name: self.latents[number].detach() for name, (number, _) in self._weights.items()}
        found |= {name: table.whole() for name, table in self._tables.items()}
        return {name: latent.clamp(-LEVELS, LEVELS).numpy() for name, latent in found.items()}

    def forward(self, inputs: Mapping[str, Tensor], keep: Sequence[str]) -> dict[str, Tensor]:
        """The graph's outputs, and the values named in ``keep``."""
        feed: Any = inputs
        return self.graph.run(feed, weights=self.vectors(), keep=keep, on_operands=self._on_operands)

    def _on_operands(self, node: ir.Node, operands: list[Tensor | None]) -> list[Tensor | None]:
        name = node.outputs[0].name or ""
        source = operands[0]
        if name in self._tables:
            index = operands[1]
            assert index is not None
            return list(self._tables[name](index))
        if name not in self._weights:
            return operands
        number, weight = self._weights[name]
        assert source is not None
        rounded = round_latent(self.latents[number], self._steps[number])
        return [round_input(source, weight.form), rounded, *operands[2:]]


class _Table(nn.Module):
    """Looks rows up, of which some are trained."""

    def __init__(self, table: SimulatedTable) -> None:
        super().__init__()
        self._values = torch.from_numpy(np.ascontiguousarray(table.values))
        self._steps = torch.from_numpy(np.ascontiguousarray(table.steps, np.float32))
        self._learned = torch.from_numpy(table.learned)
        self._places = torch.full((len(table.values),), -1, dtype=torch.int64)
        self._places[self._learned] = torch.arange(len(table.learned))
        rows = table.learned
        self.latent = nn.Parameter(first_latent(table.weight[rows], table.values[rows], table.steps[rows]))

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that ``index`` has, float32 [found, width], and an index into those."""
        found, places = torch.unique(index % len(self._values), return_inverse=True)
        steps, slots = self._steps[found], self._places[found]
        taken = self._values[found] * steps
        if len(self._learned):
            learned = round_latent(self.latent.index_select(0, slots.clamp_min(0)), steps)
            taken = torch.where((slots >= 0)[:, None], learned, taken)
        return taken, places

    def whole(self) -> Tensor:
        """All rows in steps."""
        made = self._values.float()
        made[self._learned] = self.latent.detach()
        return made


class GridLoss(nn.Module):
    """A loss for each sample: the answer's difference, and ``hidden`` times the mean of those of ``values``.

    The answer is what ``answer`` makes of the outputs, or all of them; ``angles`` compares its direction alone.
    """

    def __init__(
        self, student: GridStudent, answer: Objective | None, values: Sequence[str], *, hidden: float, angles: bool
    ) -> None:
        super().__init__()
        self.student = student
        self.rates = {f"student.offsets.{number}": VECTOR_RATE for number in range(len(student.offsets))}
        self._answer, self._values, self._hidden, self._angles = answer, tuple(values), hidden, angles

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:  # noqa: ARG002
        """A loss for each sample of ``inputs``."""
        keep = self._values if self._hidden else ()
        feed: Any = inputs
        with torch.no_grad():
            theirs = self.student.graph.run(feed, keep=keep)
        ours = self.student(inputs, keep)
        answers = [self._take(found, feed) for found in (ours, theirs)]
        loss = cosine_loss(*answers) if self._angles else (answers[0] - answers[1]).square().sum(1)
        mask = inputs.get("attention_mask")
        for name in keep:
            part = _difference(ours[name].float(), theirs[name].float(), mask, len(loss))
            loss = loss + self._hidden / len(keep) * part
        return loss

    def _take(self, found: Mapping[str, Tensor], feed: Any) -> Tensor:
        if self._answer is not None:
            return self._answer(found, feed).float().flatten(1)
        names = [name for name in self.student.graph.outputs if found[name].is_floating_point()]
        return torch.cat([found[name].float().flatten(1) for name in names], 1)


def _difference(ours: Tensor, theirs: Tensor, mask: Tensor | None, samples: int) -> Tensor:
    """``hidden_loss``; one for all samples where their tokens are rows of one matrix [B · S, H]."""
    if len(ours) == samples:
        return hidden_loss(ours, theirs, mask)
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    if mask is not None and mask.numel() == len(ours):
        kept = mask.reshape(-1, 1)
        ours, theirs = ours * kept, theirs * kept
    return (ours - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12)


def round_input(values: Tensor, form: Smoothing) -> Tensor:
    """What uint8 leaves of ``values`` [..., in], as ``algorithms.smoothing.round_input`` has it; gradients pass."""
    smoothed = values if form.scale is None else values / torch.from_numpy(form.scale)
    with torch.no_grad():
        zero = form.affine.zero_point
        steps: Any = float(np.float32(form.affine.scale))
        if form.least_peak is not None:
            measured = smoothed.abs() if zero == MIDDLE else smoothed
            steps = measured.amax(-1, keepdim=True).clamp_min(form.least_peak) * steps
        error = torch.round(smoothed / steps).clamp_(-zero, 255 - zero).mul_(steps) - smoothed
    return smoothed + error
