"""Taking hidden neurons out of an exported graph, chosen and made up for by what calibration says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.hidden_units import HiddenSite, cut_site
from edgeslim.quantizing.answer_gradients import task_objective
from edgeslim.quantizing.moments import collect_moments
from edgeslim.quantizing.probe import open_probe
from edgeslim.quantizing.unit_choice import Taker, UnitOptions, choose_kept, fit_kept
from edgeslim.quantizing.weight_gradients import output_moments

__all__ = ["prune_neurons"]

Array = npt.NDArray[np.float64]


def prune_neurons(
    model: ir.Model, sites: Sequence[HiddenSite], keep: float, options: UnitOptions, ctx: Context
) -> StepResult[ir.Model]:
    """Leaves the share ``keep`` of the neurons of ``sites``; changes ``model`` in place.

    Raises:
        BadInputError: there is nothing to calibrate with, activations aren't finite, or an operator has no gradient.
    """
    takers = _takers(model, sites, options, ctx)
    chosen = choose_kept([[taker] for taker in takers], keep, options)
    names = {site.name: site.channels for site in sites}
    for site, taker, kept in zip(sites, takers, chosen, strict=True):
        if len(kept) < site.channels:
            columns, weight, shift = fit_kept(taker, kept, options)
            cut_site(model.graph, site, columns, weight, shift)
    passes.RemoveUnusedNodesPass()(model)
    left = sum(len(kept) for kept in chosen)
    total = sum(names.values())
    return StepResult(
        model=model,
        changed=sum(len(kept) < site.channels for site, kept in zip(sites, chosen, strict=True)),
        metrics={"neurons": float(total), "neurons_kept": left / total},
    )


def _takers(model: ir.Model, sites: Sequence[HiddenSite], options: UnitOptions, ctx: Context) -> list[Taker]:
    hidden = {site.name: site.values[0] for site in sites}
    names = {value.name or "" for value in hidden.values()}
    run = open_probe(model, list(hidden.values()), ctx.work_dir / "probe")
    moments = collect_moments(run, names, ctx.calibration, progress=ctx.progress)
    gradients: dict[str, Array] = {}
    scores: dict[str, Array] = {}
    if options.importance == "obs":
        gradients = output_moments(model, [site.consumer for site in sites], ctx, samples=options.gradient_samples)
    elif options.importance in ("taylor", "fisher"):
        scores = _scores(model, sites, options, ctx)
    return [
        Taker(
            matrix=site.consumer.matrix(),
            units=np.arange(site.channels, dtype=np.int64)[:, None],
            moments=moments[hidden[site.name].name or ""],
            gradients=gradients.get(site.name),
            scores=scores.get(site.name),
            bias=site.bias is not None,
        )
        for site in sites
    ]


def _scores(model: ir.Model, sites: Sequence[HiddenSite], options: UnitOptions, ctx: Context) -> dict[str, Array]:
    """|Σ x·g| or ½ (Σ x·g)² of each neuron, sums over a batch's rows, means over batches."""
    import torch

    from edgeslim.torch_graph import TorchGraph, output_gradients

    if not ctx.calibration:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    graph, objective = TorchGraph(model), task_objective(ctx.task)
    hidden = {site.name: site.values[0].name or "" for site in sites}
    names = list(dict.fromkeys(hidden.values()))
    sums: dict[str, Array] = {}
    batches = ctx.calibration[: options.gradient_samples]
    for number, batch in enumerate(ctx.progress.track(batches, "gradients", len(batches))):
        (gradients,) = output_gradients(graph, [batch.feed], names, objective=objective, seed=ctx.seed + number)
        with torch.no_grad():
            values = graph.run(batch.feed, keep=names)
        for name in names:
            product = values[name].numpy().astype(np.float64) * gradients[name]
            change = product.reshape(-1, product.shape[-1]).sum(axis=0)
            worth = np.abs(change) if options.importance == "taylor" else 0.5 * np.square(change)
            sums[name] = sums.get(name, 0.0) + worth / len(batches)
    return {site: sums[name] for site, name in hidden.items()}
