"""Chooses the grids of a graph's weights while it is quantized: what is measured before, and what is done at the end.

Gradients are measured on the float graph, each layer's Hessian is known when the layer is rounded, and the grids are
chosen once the graph is whole (``edgeslim.quantizing.storage_grid``). Training on with the grids simulated comes last
(``edgeslim.quantizing.grid_training``), within the bytes that the grids gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.allocation import GridTensor
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Context
from edgeslim.errors import BadInputError
from edgeslim.graphs.int8_forms import Linear, Table
from edgeslim.quantizing.answer_gradients import Sensitivity, measure_sensitivity, row_frequencies
from edgeslim.quantizing.grid_training import GridTraining, GridTrainingOptions, GridWeight, linear_site, table_site
from edgeslim.quantizing.storage_grid import (
    NEAR,
    StorageGoal,
    fit_storage,
    packed_size,
    read_rounded,
    write_learned,
)
from edgeslim.torch_graph import TorchGraph

__all__ = ["StorageFit"]

TINY = 1e-30


class StorageFit:
    """Collects what the choice of steps needs while a graph is quantized, and then makes the choice."""

    def __init__(
        self,
        goal: StorageGoal,
        context: Context,
        *,
        strength: float,
        samples: int,
        frequency: float,
        training: GridTrainingOptions,
    ) -> None:
        self._goal = goal
        self._context = context
        self._strength = strength
        self._samples = samples
        self._frequency = frequency
        self._options = training
        self._training: GridTraining | None = None
        self._sensitivity: Sensitivity | None = None
        self._tensors: list[GridTensor] = []

    def measure(
        self, model: ir.Model, linears: Sequence[Linear], tables: Sequence[Table], skipped: dict[str, str]
    ) -> None:
        """Measures gradients of the float ``model``; where it can't be differentiated, ``skipped`` says why."""
        given = {_name(table.node.outputs[0]): (_name(table.node.inputs[1]), len(table.weight)) for table in tables}
        values = [_name(linear.output) for linear in linears]
        if self._options.trains:
            self._training = GridTraining(self._options, model, self._context)
            for table in tables:
                self._training.add(table.name, table_site(table))
        try:
            self._sensitivity = measure_sensitivity(
                TorchGraph(model),
                self._context.calibration,
                self._context.task,
                values,
                given,
                samples=self._samples,
                seed=self._context.seed,
                progress=self._context.progress,
            )
        except BadInputError as error:
            skipped["gradients"] = f"steps are chosen by each layer's own error: {error.where}: {error.got}"
        self._tensors += [self._table(table, _name(table.node.outputs[0])) for table in tables]

    def add_linear(
        self,
        linear: Linear,
        weight: npt.NDArray[np.float32],
        upper: npt.NDArray[np.float64],
        form: Smoothing,
        *,
        samples: int,
    ) -> None:
        """Adds a layer: its weight as it will be rounded, and ``factor_inverse`` of its inputs' Hessian.

        The Hessian is a sum over ``samples``; ``form`` says how the layer's input is rounded.
        """
        if self._training is not None:
            self._training.add(linear.name, linear_site(linear, form))
        found = self._sensitivity
        if found is None:
            energy = float(np.square(np.linalg.solve(upper.T, weight)).sum())
            gradients = np.full(weight.shape[1], 1 / max(energy, TINY))
        else:
            output = _name(linear.output)
            gradients = found.channels[output] / max(found.tokens[output] * samples, 1)
        self._tensors.append(GridTensor(name=linear.name, weight=weight, upper=upper, gradients=gradients))

    def apply(self, model: ir.Model, skipped: dict[str, str]) -> Mapping[str, float]:
        """Moves the weights of ``model``, which is quantized by now, and trains them if asked for.

        Metrics as ``fit_storage`` and the training give them. Where plain int8 keeps the goal, or training brings
        nothing, the weights stay as they were rounded, and ``skipped`` says so.
        """
        folder = self._context.work_dir / "storage"
        metrics = fit_storage(
            model,
            self._tensors,
            self._goal,
            strength=self._strength,
            folder=folder,
            progress=self._context.progress,
        )
        if self._training is None:
            return metrics
        if not metrics:
            skipped["training"] = "plain int8 is small enough: there are no coarser grids to train on"
            return metrics
        learned = self._training.run(model, {tensor.name: _on_grid(model, tensor) for tensor in self._tensors})
        if not learned.best < learned.first:
            skipped["training"] = f"the loss on validation samples was {learned.first:.4g}, and is {learned.best:.4g}"
            return {**metrics, **learned.metrics}
        most = round(metrics["packed_bytes"] * (1 + NEAR))
        if self._goal.bytes is not None:
            most = self._goal.bytes - packed_size(model, folder / "untrained").graph
        written = write_learned(model, self._tensors, learned.latents, most=most, folder=folder)
        if written is None:
            skipped["training"] = f"what it learned takes more than the {most:,} bytes that the weights may take"
            return {**metrics, **learned.metrics}
        learned.write_vectors(model)
        return {**metrics, **learned.metrics, "packed_bytes": float(written)}

    def _table(self, table: Table, output: str) -> GridTensor:
        found = self._sensitivity
        if found is None:
            upper = np.eye(table.weight.shape[1])
            energy = float(np.square(table.weight, dtype=np.float64).sum())
            gradients = np.full(len(table.weight), 1 / max(energy, TINY))
        else:
            lookup, tokens = found.lookups[output], found.tokens[output]
            upper = factor_inverse(lookup.covariance / max(tokens, 1))
            gradients = row_frequencies(lookup.counts, self._frequency) * tokens / max(found.samples, 1)
        return GridTensor(
            name=table.name,
            weight=np.ascontiguousarray(table.weight.T),
            upper=upper,
            gradients=gradients,
            stored_by_column=True,
        )


def _on_grid(model: ir.Model, tensor: GridTensor) -> GridWeight:
    """``tensor`` as ``model`` has it by now, in the file's layout."""
    rounded = read_rounded(model, tensor)
    return GridWeight(
        weight=np.ascontiguousarray(tensor.weight.T) if tensor.stored_by_column else tensor.weight,
        values=tensor.stored(rounded),
        steps=rounded.steps.reshape((-1, 1) if tensor.stored_by_column else (1, -1)),
    )


def _name(value: ir.Value | None) -> str:
    """A value's name, empty if it has none."""
    return (value.name if value is not None else None) or ""
