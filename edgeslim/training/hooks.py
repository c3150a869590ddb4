"""What a stage adds to the training loop: something to do after each step, with a state that survives a kill."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeslim.training.masks import Masks, apply_masks, mask_gradients

__all__ = ["Hook", "KeepMasks"]


class Hook:
    """Does nothing; a subclass overrides what it needs. Steps count from 0, ``total`` is the last one plus 1."""

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step."""

    def before_update(self, module: nn.Module) -> None:
        """After the gradients of a step are known, before the optimizer uses them."""

    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:
        """After the optimizer changed the weights."""

    def settled(self, step: int, total: int) -> bool:  # noqa: ARG002
        """Whether the model has its final form after ``step``: only then it may be kept as the best."""
        return True

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step, once."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what ``state`` gave."""


class KeepMasks(Hook):
    """Keeps masked weights at zero."""

    def __init__(self, masks: Masks) -> None:
        self.masks = dict(masks)

    def before_update(self, module: nn.Module) -> None:
        """Masked weights have no gradient."""
        mask_gradients(module, self.masks)

    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:  # noqa: ARG002
        """Masked weights are zero, whatever weight decay and momentum did."""
        apply_masks(module, self.masks)
