"""Weights that are trained on the grids that they will be stored on.

Each weight has a *latent* one, in steps of its channel's grid: what the model computes with is the nearest integer
times the step, from -127 to 127, and the backward pass takes that rounding for the identity (straight-through, Bengio
et al. 2013, arXiv 1308.3432). The steps stay what the allocation chose, so what is learned is which way each weight is
rounded, and later where it goes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeslim.algorithms.rate import LEVELS
from edgeslim.training.hooks import Hook

__all__ = ["VECTOR_RATE", "KeepSmall", "Latents", "first_latent", "round_latent"]

EDGE = 0.4
"""Latent weights begin at most so far from their integer, so that none flips in the first steps by noise alone."""
EXCESS = 1e-3
"""By so much more of magnitude, all of it, weights are made smaller as fast as they may be."""
VECTOR_RATE = 0.2
"""How fast vectors learn, in their own root mean square, where weights do in steps of their grids."""


class _Round(torch.autograd.Function):
    """Latent weights to the nearest integers, times the steps."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, steps: Tensor) -> Tensor:
        ctx.save_for_backward(steps)
        return torch.round(latent).clamp_(-LEVELS, LEVELS).mul_(steps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (steps,) = ctx.saved_tensors
        return gradient * steps, None


round_latent: Any = _Round.apply
"""The weights that latent ones and steps stand for."""


class Latents(nn.Module):
    """A model with latent weights."""

    @abstractmethod
    def all_latents(self) -> list[Tensor]:
        """The weights that are trained, in steps."""

    def alive(self) -> list[tuple[Tensor, Tensor]]:
        """The latent weights of layers that were pruned, each with what is 0 where a weight is."""
        return []

    def magnitude(self) -> float:
        """The sum of the integers' magnitudes, of all latent weights."""
        return sum(float(torch.round(latent.detach()).abs().sum()) for latent in self.all_latents())


class KeepSmall(Hook):
    """Keeps integers as small as they were, on the whole, and those of weights that were pruned at zero.

    Code lengths grow with magnitudes: while the sum of these is above what it was, all latent weights are made smaller,
    by up to the learning rate a step.
    """

    def __init__(self, student: Latents) -> None:
        self._magnitude = student.magnitude()

    @torch.no_grad()
    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:  # noqa: ARG002
        """Moves each latent weight of the model."""
        assert isinstance(module, Latents)
        excess = module.magnitude() / max(self._magnitude, 1.0) - 1
        shrink = learning_rate * min(max(excess / EXCESS, 0.0), 1.0)
        for latent in module.all_latents() if shrink else []:
            latent.sub_(latent.sign(), alpha=shrink)
        for latent, alive in module.alive():
            latent.mul_(alive)


def first_latent(
    weight: npt.NDArray[np.float32], values: npt.NDArray[np.int8], steps: npt.NDArray[np.float32]
) -> Tensor:
    """The float weight in steps, held near the integers that it was rounded to."""
    floats = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.clip(weight / steps, floats - EDGE, floats + EDGE), np.float32))
