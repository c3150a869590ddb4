"""Structured pruning: whole attention heads, hidden neurons, channels and layers go, and every shape with them.

Unlike zeros these make any runtime faster. What stays makes up for what went: by least squares from the second moments
of the inputs of the layer that took it, bias included (``compensate``; ``edgeslim.algorithms.structured_pruning``). On
the torch model all kinds can go; on an exported graph, so on a bare ``.onnx`` too, hidden neurons can, and the stage
works there where nothing else is asked and no later step needs the torch model.

``importance`` of a unit:

- ``obs``: what its removal costs the answer once the others have made up for it (Optimal Brain Surgeon for blocks), by
  the moments of the layer's inputs and of the gradients of its outputs
- ``activation``: the mean square of what it adds to the layer's output, without making up
- ``taylor``, ``fisher``: |x·∂L/∂x| and its square, of the unit as one (``edgeslim.training.unit_statistics``)

Layers are judged by how much they turn their input (ShortGPT, Men et al. 2024, arXiv 2403.03853), and are not made up
for; only a model of transformers can lose some. With grouped-query attention a key and value head goes with all query
heads that read it. Pruned weights (masks) and factorized layers of earlier steps don't fit what is left: prune by
structure first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.errors import BadInputError
from edgeslim.graphs.hidden_units import find_sites
from edgeslim.quantizing.hidden_importance import prune_neurons
from edgeslim.quantizing.unit_choice import UnitOptions

__all__ = ["PruneStructured"]


@dataclass(frozen=True, kw_only=True)
class PruneStructured(UnitOptions):
    """``keep_heads``, ``keep_neurons`` and ``keep_channels`` are the shares that stay, ``keep_layers`` is a number.

    ``scope`` layer keeps that share of each layer, global of all of a kind together. Neurons and channels stay in
    multiples of ``multiple``, which kernels like. ``damping`` is added to the moments' diagonal, as a share of its
    mean.
    Gradients come from at most ``gradient_samples`` samples, for ``taylor`` and ``fisher`` on a torch model from
    training data with labels where there are some. ``keep`` are patterns of names of layers (``*`` allowed) that stay
    whole.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "either"

    keep_heads: float = 1.0
    keep_neurons: float = 1.0
    keep_channels: float = 1.0
    keep_layers: int | None = None

    def __post_init__(self) -> None:
        UnitOptions.__post_init__(self)
        shares = (self.keep_heads, self.keep_neurons, self.keep_channels)
        if any(not 0 < share <= 1 for share in shares):
            raise ValueError(f"keep_heads, keep_neurons, keep_channels: {shares}, expected more than 0 and at most 1")
        if min(shares) == 1 and self.keep_layers is None:
            raise ValueError("nothing to prune, expected a share below 1 to keep, or keep_layers")
        if self.keep_layers is not None and self.keep_layers < 1:
            raise ValueError(f"keep_layers: {self.keep_layers}, expected at least 1")

    @property
    def needs_module(self) -> bool:
        """Whether a graph isn't enough."""
        return min(self.keep_heads, self.keep_channels) < 1 or self.keep_layers is not None

    def run(self, model: Any, ctx: Context) -> StepResult[Any]:
        """Prunes ``model`` in place: an ``onnx_ir.Model`` or a ``TorchModel``.

        Raises:
            BadInputError: nothing of what is asked for can be pruned here, an earlier step's work doesn't allow it, or
                there is nothing to calibrate with.
            MissingToolError: torch-pruning isn't installed, and the model's layers aren't known without it.
        """
        return self._prune_graph(model, ctx) if isinstance(model, ir.Model) else self._prune_module(model, ctx)

    def _prune_graph(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        if self.needs_module:
            raise BadInputError(
                "recipe: prune_structured",
                "heads, channels or layers of an exported graph",
                expected="keep_neurons alone",
                hint="build from the model that the graph was exported from",
            )
        skipped: dict[str, str] = {}
        sites = find_sites(model, skipped, keep=self.keep)
        if not sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
            raise BadInputError(
                "recipe: keep_neurons",
                "no hidden neurons in the graph" + (f" ({reasons})" if reasons else ""),
                expected="a matrix that takes what others make, channel by channel",
            )
        return replace(prune_neurons(model, sites, self.keep_neurons, self, ctx), skipped=skipped)

    def _prune_module(self, model: Any, ctx: Context) -> StepResult[Any]:
        from edgeslim.training.structured import check_prunable, drop_layers, prune_units  # torch

        check_prunable(model)
        skipped: dict[str, str] = {}
        metrics: dict[str, float] = {"parameters_before": float(sum(p.numel() for p in model.module.parameters()))}
        if self.keep_layers is not None:
            model, found = drop_layers(model, self.keep_layers, ctx)
            metrics |= found
        shares: Mapping[Literal["heads", "neurons", "channels"], float] = {
            "heads": self.keep_heads,
            "neurons": self.keep_neurons,
            "channels": self.keep_channels,
        }
        pruned, changed, found = prune_units(model, shares, self, ctx, skipped)
        return StepResult(model=pruned, changed=changed, skipped=skipped, metrics={**metrics, **found})
