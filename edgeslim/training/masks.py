"""Which weights of a torch model are zero for good.

A mask is a boolean tensor of its parameter's shape, ``True`` where the weight may live. A stage that prunes returns the
model with masks; every later stage on the torch model multiplies them in after each step of its training, and the
pipeline checks after each stage that every masked weight is exactly zero, and after the export that the zeros are in
the graph. A stage that replaces a masked parameter (a factorization, a smaller student) has to carry its mask over;
where it can't, the recipe is refused: factorize or shrink first, then prune.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeslim.errors import BadInputError, CheckError

__all__ = ["Masks", "apply_masks", "check_masks", "count_masked", "join_masks", "mask_gradients"]

Masks = Mapping[str, Tensor]
"""Masks by the name of their parameter, as ``named_parameters`` has it; ``True`` keeps a weight."""


def join_masks(old: Masks, new: Masks) -> dict[str, Tensor]:
    """Masks that keep what both keep: what was pruned stays pruned."""
    both = {name: old[name] & new[name] for name in old if name in new}
    return {**old, **new, **both}


@torch.no_grad()
def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Sets the masked weights of ``module`` to zero.

    Raises:
        BadInputError: a mask has no parameter, or another shape than it.
    """
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != mask.shape:
            got = "no such parameter" if parameter is None else f"shape {list(parameter.shape)}"
            raise BadInputError(name, got, expected=f"a parameter of the mask's shape {list(mask.shape)}")
        # Not a product: infinite or NaN weights would stay, and a product with 0 may be a negative zero.
        parameter.masked_fill_(~mask, 0.0)


@torch.no_grad()
def mask_gradients(module: nn.Module, masks: Masks) -> None:
    """Sets the gradients of masked weights to zero, so that they don't count in a norm or a momentum."""
    for name, parameter in module.named_parameters():
        if name in masks and parameter.grad is not None:
            parameter.grad.masked_fill_(~masks[name], 0.0)


def count_masked(masks: Masks) -> int:
    """How many weights the masks set to zero."""
    return sum(int((~mask).sum()) for mask in masks.values())


def check_masks(module: nn.Module, before: Masks, after: Masks, stage: str) -> None:
    """Refuses a model in which weights live that an earlier or this stage set to zero.

    Raises:
        BadInputError: ``stage`` dropped a mask of an earlier one: the recipe's order is wrong.
        CheckError: a masked weight isn't zero.
    """
    parameters = dict(module.named_parameters())
    for name, mask in before.items():
        kept = after.get(name)
        if kept is None or kept.shape != mask.shape or bool((kept & ~mask).any()):
            raise BadInputError(
                f"recipe: {stage}",
                f"it replaces {name}, {int((~mask).sum()):,} of whose weights an earlier step pruned",
                expected="steps that keep those weights zero",
                hint=f"prune after {stage}, not before it",
            )
    for name, mask in after.items():
        parameter = parameters.get(name)
        alive = None if parameter is None else int((parameter.detach()[~mask] != 0).sum())
        if alive is None or alive:
            got = "no such parameter" if alive is None else f"{alive:,} pruned weights aren't zero"
            raise CheckError(f"{stage}: {name}", got, expected="zero where the mask says so")
