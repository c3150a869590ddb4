"""Training on with the grids simulated: what is left of the answer's error after rounding, learned away.

Once a step is chosen for every channel and every weight is rounded, the float graph with rounded weights and rounded
inputs (``edgeslim.training.grid_student``) is trained to answer as it did before, by the training loop that all stages
share: seeded, and taken up again after a kill. Only integers, biases and the vectors of normalizations change, so the
graph, its kernels and the steps stay as they are. Of an embedding table those rows are trained that occur often; others
would learn the one sentence that they occur in.

Data: the project's training data, whose labels aren't needed, or else the calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Batch, Context, TrainingData
from edgeslim.errors import BadInputError
from edgeslim.graphs.int8_forms import Linear, Table, attribute
from edgeslim.processes import process_count
from edgeslim.quantizing.answer_gradients import task_objective
from edgeslim.torch_graph import TorchGraph

if TYPE_CHECKING:
    from edgeslim.training.loop import LoopOptions

__all__ = [
    "GridSite",
    "GridTraining",
    "GridTrainingOptions",
    "GridWeight",
    "Learned",
    "linear_site",
    "refuse_processes",
    "table_site",
]

VALIDATION = 10
"""Every tenth of the calibration samples decides which weights are kept, where nothing else is to train on."""
VALIDATIONS = 5
FREQUENT = 32
"""Rows of tables that occur in so many samples are trained."""
ADDS = ("Add", "Gemm", "LayerNormalization", "RMSNormalization")
"""Operators whose constant vectors are trained along."""


@dataclass(frozen=True, kw_only=True)
class GridTrainingOptions:
    """``distill_steps`` of training after the steps of all grids are chosen; 0 for none.

    ``distill_rate`` is the learning rate, in steps of a weight's grid. ``distill_hidden`` weighs the difference of what
    layers take against that of the answer. ``distill_precision`` is that of products, as in the training loop.
    """

    distill_steps: int = 0
    distill_batch_size: int = 32
    distill_rate: float = 0.005
    distill_hidden: float = 1.0
    distill_precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.distill_steps < 0:
            raise ValueError(f"distill_steps: {self.distill_steps}, expected 0 or more")
        if self.distill_batch_size < 1:
            raise ValueError(f"distill_batch_size: {self.distill_batch_size}, expected at least 1")
        if not 0 < self.distill_rate < 0.5:
            raise ValueError(f"distill_rate: {self.distill_rate}, expected more than 0 and less than 0.5 steps")
        if not 0 <= self.distill_hidden < float("inf"):
            raise ValueError(f"distill_hidden: {self.distill_hidden}, expected 0 or more")

    @property
    def trains(self) -> bool:
        """Whether the stage wants training data and a place for checkpoints."""
        return self.distill_steps > 0

    def loop_options(self) -> LoopOptions:
        """The training loop's settings."""
        from edgeslim.training.loop import LoopOptions  # not above: it imports torch

        return LoopOptions(
            epochs=self.distill_steps,
            max_steps=self.distill_steps,
            batch_size=self.distill_batch_size,
            learning_rate=self.distill_rate,
            schedule="cosine",
            weight_decay=0.0,
            validate_steps=max(1, self.distill_steps // VALIDATIONS),
            precision=self.distill_precision,
        )


def refuse_processes(stage: str) -> None:
    """Refuses to train in a stage on the graph where several processes share the build.

    Raises:
        BadInputError: they do.
    """
    if process_count() > 1:
        raise BadInputError(
            f"recipe: {stage}",
            f"distill_steps in a build that {process_count()} processes share",
            expected="one process, for the stages on the graph run in the first one alone",
            hint="start the build again without the launcher: what was trained before comes from the cache",
        )


@dataclass(frozen=True, kw_only=True)
class GridSite:
    """Where a weight stands in the float graph: an operand of the node that makes ``output`` out of ``source``.

    A layer's is operand 1, [in, out] or, ``transposed``, [out, in]; ``form`` says how the input is rounded, ``bias``
    names the initializer of the bias, empty if there is none. A table has no ``form``; ``source`` are its indices.
    """

    output: str
    source: str
    bias: str = ""
    transposed: bool = False
    form: Smoothing | None = None


def linear_site(linear: Linear, form: Smoothing) -> GridSite:
    """The site of ``linear``, as long as its nodes are in the graph."""
    product = linear.nodes[0]
    addends = product.inputs[2:] if len(linear.nodes) == 1 else linear.nodes[1].inputs
    biases = [value.name for value in addends if value is not None and value.is_initializer()]
    return GridSite(
        output=product.outputs[0].name or "",
        source=linear.source.name or "",
        bias=(biases[0] if biases else None) or "",
        transposed=bool(attribute(product, "transB", 0)),
        form=form,
    )


def table_site(table: Table) -> GridSite:
    """The site of ``table``, as long as its node is in the graph."""
    index = table.node.inputs[1]
    return GridSite(output=table.node.outputs[0].name or "", source=(index.name if index is not None else None) or "")


@dataclass(frozen=True, kw_only=True)
class GridWeight:
    """A weight on its grid, as the file holds it: [in, out] of a layer, [rows, width] of a table.

    ``weight`` is float32, ``values`` int8, and ``steps`` broadcast over both.
    """

    weight: npt.NDArray[np.float32]
    values: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """``latents`` are the weights in steps, as the file holds them: their nearest integers are what was learned.

    ``vectors`` are those that came out, by the names of the initializers that hold them in the quantized graph.
    ``first`` and ``best`` are the losses on the validation samples before the training and at its best.
    """

    latents: Mapping[str, npt.NDArray[np.float32]]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    first: float
    best: float
    metrics: Mapping[str, float]

    def write_vectors(self, model: ir.Model) -> None:
        """Puts the vectors into the quantized graph."""
        for name, vector in self.vectors.items():
            model.graph.initializers[name].const_value = ir.tensor(vector, name=name)


class GridTraining:
    """Keeps the float graph while it is quantized, and trains what came of it."""

    def __init__(self, options: GridTrainingOptions, model: ir.Model, context: Context) -> None:
        """Copies ``model``, whose nodes are about to be replaced.

        Raises:
            BadInputError: it can't be differentiated.
        """
        self._options, self._context = options, context
        self._float = model.clone()
        self._graph = TorchGraph(self._float)
        self._sites: dict[str, GridSite] = {}

    def add(self, name: str, site: GridSite) -> None:
        """Tells where the weight ``name`` stands."""
        self._sites[name] = site

    def run(self, model: ir.Model, weights: Mapping[str, GridWeight]) -> Learned:
        """Trains ``weights`` of ``model``, the quantized graph, which is left as it is.

        Raises:
            BadInputError: there is too little to train on, or several processes share the build.
        """
        from edgeslim.training.grid_latents import KeepSmall
        from edgeslim.training.grid_student import GridLoss, GridStudent, SimulatedTable, SimulatedWeight
        from edgeslim.training.loop import mean_loss, train

        refuse_processes("quantize_int8")
        options, context = self._options, self._context
        data = context.training or _from_calibration(context.calibration)
        places = self._vector_places(model)
        layers, tables = [], []
        for name, one in weights.items():
            site = self._sites[name]
            if site.form is None:
                learned = _frequent(data.training, site.source, len(one.values))
                tables.append(
                    SimulatedTable(
                        output=site.output, weight=one.weight, values=one.values, steps=one.steps, learned=learned
                    )
                )
            else:
                arrays = (_turned(array, site) for array in (one.weight, one.values, one.steps))
                weight, values, steps = arrays
                layers.append(
                    SimulatedWeight(output=site.output, weight=weight, values=values, steps=steps, form=site.form)
                )
        student = GridStudent(self._graph, layers, tables=tables, vectors=tuple(places))
        sources = [self._sites[name].source for name in weights if self._sites[name].form is not None]
        loss = GridLoss(
            student,
            task_objective(context.task),
            tuple(dict.fromkeys(sources)),
            hidden=options.distill_hidden,
            angles=context.task.manifest().get("task") == "feature-extraction",
        )
        loop = options.loop_options()
        context = replace(context, training=data, device="cpu")
        first = mean_loss(loss, data, loop)
        found = train(loss, student, loop, context, hooks=[KeepSmall(student)])
        latents = student.trained_weights()
        sites = {name: self._sites[name] for name in weights}
        return Learned(
            latents={name: _turned(latents[site.output], site) for name, site in sites.items()},
            vectors={place: vector for name, vector in student.trained_vectors().items() for place in places[name]},
            first=first,
            best=found.validation[found.best_step],
            metrics={**found.metrics(), "trained_rows": float(sum(len(table.learned) for table in tables))},
        )

    def _vector_places(self, model: ir.Model) -> dict[str, list[str]]:
        """Vectors that can be trained, and the initializers of the quantized graph that hold each of them."""
        kept = {name for name, value in model.graph.initializers.items() if value.uses()}
        biases: dict[str, list[str]] = {}
        for name, site in self._sites.items():
            if site.bias and f"{name}.bias" in kept:
                biases.setdefault(site.bias, []).append(f"{name}.bias")
        found: dict[str, list[str]] = {}
        for name, value in self._float.graph.initializers.items():
            added = all(use.node.op_type in ADDS for use in value.uses())
            if added and name in self._graph.weights and self._graph.weights[name].dim() == 1:
                found[name] = [*biases.get(name, []), *([name] if name in kept else [])]
        return {name: places for name, places in found.items() if places}


def _from_calibration(batches: Sequence[Batch]) -> TrainingData:
    """Calibration samples as training data; every tenth validates."""
    if len(batches) < 2:
        raise BadInputError(
            "data",
            f"{len(batches)} calibration samples to train on",
            expected="training data, or more calibration samples",
            hint='[data] training = "texts.txt"; labels aren\'t needed',
        )
    return TrainingData(
        training=tuple(batch for index, batch in enumerate(batches) if index % VALIDATION != 1),
        validation=tuple(batch for index, batch in enumerate(batches) if index % VALIDATION == 1),
        padding={"input_ids": 0} if "attention_mask" in batches[0].feed else {},
    )


def _frequent(batches: Sequence[Batch], index: str, rows: int) -> npt.NDArray[np.int64]:
    """The rows that the input ``index`` has in at least ``FREQUENT`` of the samples."""
    counts = np.zeros(rows, np.int64)
    for batch in batches:
        if index in batch.feed:
            counts[np.unique(np.asarray(batch.feed[index]) % rows)] += 1
    return np.flatnonzero(counts >= FREQUENT).astype(np.int64)


def _turned(array: npt.NDArray[Any], site: GridSite) -> npt.NDArray[Any]:
    """From the file's layout to the operand's, or back."""
    return np.ascontiguousarray(array.T if site.transposed else array)
