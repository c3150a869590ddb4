"""How each MatMul's input goes into uint8: calibrated, searched, and moved into constants where that is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeslim.algorithms.smoothing import Activation, Smoothing, search_smoothing
from edgeslim.core import Context
from edgeslim.graphs.folding import Fold, plan_fold
from edgeslim.graphs.int8_convs import Conv
from edgeslim.graphs.int8_forms import Linear
from edgeslim.numerics import Affine, Calibration, Histogram, activation_affine, choose_range
from edgeslim.quantizing.observation import Observed, observe
from edgeslim.quantizing.probe import open_probe

__all__ = ["InputQuantizer", "fold_smoothing"]


@dataclass(frozen=True, kw_only=True)
class InputQuantizer:
    """The recipe's settings for inputs; ``stages.quantize_int8`` explains them."""

    method: Literal["output", "minmax", "percentile", "entropy", "mse"]
    percentile: float
    symmetric: bool
    smooth: bool
    activation: Activation

    def affine(self, histogram: Histogram) -> Affine:
        """Scale and zero point for one scale a tensor, from its distribution."""
        method: Calibration = "mse" if self.method == "output" else self.method
        low, high = choose_range(histogram, method, symmetric=self.symmetric, percentile=self.percentile)
        return activation_affine(low, high, symmetric=self.symmetric)

    def observe(
        self, model: ir.Model, linears: Sequence[Linear], convs: Sequence[Conv], ctx: Context, *, products: bool
    ) -> dict[str, Observed]:
        """What is seen of the values to be quantized, by their names in the float graph.

        With ``products`` that includes second moments of what MatMuls take.
        """
        values = {conv.source_name: conv.source for conv in convs}
        values |= {conv.output.name or "": conv.output for conv in convs}
        histograms = set(values)
        values |= {linear.source_name: linear.source for linear in linears}
        if not values:
            return {}
        rows = {linear.source_name for linear in linears}
        if self.method != "output":
            histograms |= rows
        runner = open_probe(model, list(values.values()), ctx.work_dir / "calibrate")
        return observe(
            runner,
            tuple(values),
            ctx.calibration,
            rows=rows,
            histograms=histograms,
            seed=ctx.seed,
            progress=ctx.progress,
            products=rows if products else (),
        )

    def choose(
        self, linears: Sequence[Linear], convs: Sequence[Conv], seen: Mapping[str, Observed], ctx: Context
    ) -> dict[str, Smoothing]:
        """Range and smoothing of each MatMul's input; an input that a Conv makes or takes is not smoothed."""
        groups: dict[str, list[Linear]] = {}
        for linear in linears:
            groups.setdefault(linear.source_name, []).append(linear)
        shared = {name for conv in convs for name in (conv.source_name, conv.output.name)}
        sites = {}
        for name, group in ctx.progress.track(groups.items(), "choosing ranges", len(groups)):
            observed = seen[name]
            searched = self.method == "output" or self.activation == "per_token"
            if observed.low is None or observed.high is None or name in shared or not searched:
                sites[name] = Smoothing(scale=None, affine=self.affine(observed.histogram), strength=0, error=0)
                continue
            sites[name] = search_smoothing(
                observed.rows,
                [linear.weight for linear in group],
                np.maximum(-observed.low, observed.high),
                symmetric=self.symmetric,
                allowed=self.smooth,
                free=_plan_fold(group) is not None,
                activation=self.activation,
                extremes=(observed.low, observed.high),
            )
        return sites


def fold_smoothing(linears: Sequence[Linear], sites: dict[str, Smoothing]) -> int:
    """Moves smoothing into constants before it where they allow, and out of ``sites``; returns how often."""
    folded = 0
    for name, site in sites.items():
        plan = None if site.scale is None else _plan_fold([one for one in linears if one.source_name == name])
        if plan is not None and site.scale is not None:
            plan.apply(site.scale)
            sites[name] = replace(site, scale=None)
            folded += 1
    return folded


def _plan_fold(group: Sequence[Linear]) -> Fold | None:
    return plan_fold(group[0].source, [linear.nodes[0] for linear in group], len(group[0].weight))
