"""Sparsity learned in training: an L1 penalty by proximal steps, an L0 penalty by hard-concrete gates.

L1, ``min loss + λ ‖w‖₁``: after each update of the optimizer every weight is moved towards zero by a threshold, and to
zero where it is smaller (soft thresholding). AdamW divides each gradient by ``d = √v̂ + ε``; the threshold is divided
by the same, ``η λ / d``, for only then the weights come to rest where the penalized loss is least (ProxGen: Yun, Lozano
and Yang 2020, arXiv 2007.07484).

L0, ``min loss + λ ‖w‖₀``: each weight is multiplied by a gate ``z`` in [0, 1] that is 0 or 1 with finite probability
(Louizos, Welling and Kingma 2018, arXiv 1712.01312), made of noise ``u`` and a parameter ``log α`` that is trained::

    s = sigmoid((log u - log(1 - u) + log α) / β),  z = clamp(s (ζ - γ) + γ, 0, 1),  β = 2/3, γ = -0.1, ζ = 1.1
    P(z > 0) = sigmoid(log α - β log(-γ / ζ))

What differs: λ isn't a setting but follows the asked sparsity. It grows by a tenth each time that the model is denser
than the cubic schedule of ``edgeslim.training.gradual_pruning`` wants it by now, else it falls by as much. At the end
of the schedule the weights that count least are masked, exactly as many as were asked for, gates are multiplied in, and
what is left of the training goes on without a penalty, which takes the bias of the shrinking away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeslim.training.gradual_pruning import cubic_sparsity, magnitude_masks
from edgeslim.training.hooks import KeepMasks
from edgeslim.training.masks import Masks, apply_masks, count_masked, join_masks

__all__ = ["Gates", "LearnedSparsity", "ProximalL1", "expected_open", "gate_values", "soft_threshold"]

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
GROWTH = 1.1


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """``sign(w) max(|w| - t, 0)``: the proximal step of ``t ‖w‖₁``."""
    return torch.sign(values) * torch.clamp(values.abs() - threshold, min=0)


def gate_values(log_alpha: Tensor, noise: Tensor | None) -> Tensor:
    """Hard-concrete gates; ``noise`` is uniform in (0, 1), and without it the gates are those of the finished model."""
    drawn = log_alpha if noise is None else (torch.logit(noise) + log_alpha) / BETA
    return torch.clamp(torch.sigmoid(drawn) * (ZETA - GAMMA) + GAMMA, 0, 1)


def expected_open(log_alpha: Tensor) -> Tensor:
    """The probability that each gate isn't 0."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


class LearnedSparsity(KeepMasks):
    """What both methods share: λ follows the schedule, and at its end the masks are fixed.

    ``names`` are the parameters that become sparse, ``begin`` and ``end`` shares of all steps.
    """

    def __init__(
        self, names: Sequence[str], masks: Masks, *, sparsity: float, begin: float, end: float, strength: float
    ) -> None:
        super().__init__(masks)
        self.names, self.fixed = list(names), False
        self._sparsity, self._begin, self._end = sparsity, begin, end
        self.strength = strength

    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:
        """One step of the penalty, or at the end of the schedule the masks."""
        last = self._last(total)
        parameters = {name: module.get_parameter(name) for name in self.names}
        if not self.fixed and step >= self._begin * total:
            self.penalize(parameters, learning_rate)
            begin = int(self._begin * total)
            wanted = cubic_sparsity(self._sparsity, (step - begin) / max(1, last - begin))
            self.strength *= GROWTH if self.reached(parameters) < wanted else 1 / GROWTH
        if not self.fixed and step >= last:
            made = magnitude_masks(self.importance(parameters), self._sparsity, scope="global")
            self.masks = join_masks(self.masks, made)
            self.fixed = True
        apply_masks(module, self.masks)

    def penalize(self, parameters: Mapping[str, Tensor], learning_rate: float) -> None:
        """Moves weights towards zero, where the loss doesn't do so already."""

    def reached(self, parameters: Mapping[str, Tensor]) -> float:
        """The sparsity now: the share of weights that are zero."""
        zeros = sum(int((value == 0).sum()) for value in parameters.values())
        return zeros / sum(value.numel() for value in parameters.values())

    def importance(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What masks are chosen by; the smallest go."""
        return parameters

    def settled(self, step: int, total: int) -> bool:
        """Once the masks are fixed."""
        return step >= self._last(total)

    def state(self) -> dict[str, Tensor]:
        """Masks, λ, and whether they are fixed."""
        facts = torch.tensor([self.strength, float(self.fixed)], dtype=torch.float64)
        return {"facts": facts, **{f"mask.{name}": mask for name, mask in self.masks.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes them back."""
        self.strength, self.fixed = float(state["facts"][0]), bool(state["facts"][1])
        self.masks = {name.removeprefix("mask."): mask for name, mask in state.items() if name.startswith("mask.")}

    def metrics(self) -> dict[str, float]:
        """How many weights are masked, and the last λ."""
        size = sum(mask.numel() for mask in self.masks.values())
        masked = count_masked(self.masks)
        return {"pruned_weights": float(masked), "sparsity": masked / max(1, size), "strength": self.strength}

    def _last(self, total: int) -> int:
        return min(total - 1, max(0, round(self._end * total) - 1))


class ProximalL1(LearnedSparsity):
    """The L1 penalty. With ``steady`` λ stays as it is, and nothing is masked at the end."""

    def __init__(self, *arguments: Any, steady: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._steady = steady
        self._optimizer: torch.optim.Optimizer | None = None

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Gets the optimizer, by whose second moments thresholds are divided."""
        self._optimizer = optimizer

    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:
        """One proximal step."""
        if self._steady:
            self.penalize({name: module.get_parameter(name) for name in self.names}, learning_rate)
        else:
            super().after_update(module, step, total, learning_rate)

    @torch.no_grad()
    def penalize(self, parameters: Mapping[str, Tensor], learning_rate: float) -> None:
        """Soft thresholding in the optimizer's metric."""
        assert self._optimizer is not None, "the loop calls begin"
        (beta,) = {group["betas"][1] for group in self._optimizer.param_groups}
        (epsilon,) = {group["eps"] for group in self._optimizer.param_groups}
        for parameter in parameters.values():
            state = self._optimizer.state[parameter]
            scale = (state["exp_avg_sq"] / (1 - beta ** state["step"])).sqrt() + epsilon
            parameter.copy_(soft_threshold(parameter, learning_rate * self.strength / scale))


class Gates(LearnedSparsity, nn.Module):
    """The L0 penalty: a gate a weight. As a module it holds ``log α``, which the loop trains beside the weights."""

    def __init__(self, module: nn.Module, names: Sequence[str], masks: Masks, **settings: Any) -> None:
        nn.Module.__init__(self)
        LearnedSparsity.__init__(self, names, masks, **settings)
        # Open gates, P(z > 0) = 0.99 or so, as in the paper's experiments with little dropout.
        shapes = {name: module.get_parameter(name).shape for name in names}
        made = {_key(name): nn.Parameter(torch.full(shape, 2.0)) for name, shape in shapes.items()}
        self.log_alpha = nn.ParameterDict(made)

    def gate(self, name: str) -> Tensor | None:
        """The gates of a parameter: drawn anew in training, the finished ones else; ``None`` once masks are fixed."""
        if self.fixed:
            return None
        log_alpha = self.log_alpha[_key(name)]
        noise = torch.rand(log_alpha.shape).clamp(1e-6, 1 - 1e-6) if torch.is_grad_enabled() else None
        return gate_values(log_alpha, noise)

    def penalty(self) -> Tensor | None:
        """λ times the share of gates that are expected to be open."""
        return None if self.fixed else self.strength * self._density()

    def reached(self, parameters: Mapping[str, Tensor]) -> float:  # noqa: ARG002
        """1 - the share of gates that are expected to be open."""
        with torch.no_grad():
            return 1 - float(self._density())

    @torch.no_grad()
    def importance(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The gated weights, which from now on are the weights themselves; closed gates rank below small weights."""
        ranks = {}
        for name, parameter in parameters.items():
            log_alpha = self.log_alpha[_key(name)]
            gates = gate_values(log_alpha, None)
            parameter.mul_(gates)
            # Among weights whose gates are closed the one that was most likely open goes last.
            ranks[name] = torch.where(gates > 0, 1 + parameter.abs(), expected_open(log_alpha))
        return ranks

    def _density(self) -> Tensor:
        size = sum(value.numel() for value in self.log_alpha.values())
        opened = torch.stack([expected_open(value).sum() for value in self.log_alpha.values()]).sum()
        share: Tensor = opened / size
        return share

    @contextmanager
    def gated(self, module: nn.Module) -> Iterator[None]:
        """Lets the layers of ``module`` compute with gated weights for a while."""
        layers = {name.rpartition(".")[0]: name for name in self.names}
        changed: list[Any] = [(module.get_submodule(layer), name) for layer, name in layers.items()]
        try:
            for layer, name in changed:
                layer.forward = self._forward(layer, name)
            yield
        finally:
            for layer, _ in changed:
                del layer.forward

    def _forward(self, layer: Any, name: str) -> Any:
        def forward(values: Tensor) -> Tensor:
            gates = self.gate(name)
            weight = layer.weight if gates is None else layer.weight * gates
            if isinstance(layer, nn.Linear):
                return functional.linear(values, weight, layer.bias)
            return layer._conv_forward(values, weight, layer.bias)  # type: ignore[no-any-return]

        return forward


def _key(name: str) -> str:
    """A parameter's name as the key of another one, which has no dots."""
    return name.replace(".", "/")
