"""Quantization simulated in training, so that a model learns to live with it.

While it is on, each linear and convolutional layer computes with weights, and inputs, that were rounded to the grid and
back; the backward pass takes rounding for the identity (straight-through, Bengio et al. 2013, arXiv 1308.3432; Jacob et
al. 2018, arXiv 1712.05877). The weights themselves stay float: the real quantization is a stage of its own, after the
export, and its scales are its own. So this is an approximation of it:

* int8: weights symmetric, a scale an output channel; inputs affine uint8, a range a token (a sample for pictures)
* int4: weights symmetric in groups of 32 along the input, as MatMulNBits has them; inputs as for int8
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SimulationOptions", "fake_quantize_inputs", "fake_quantize_weight", "simulate_quantization"]

GROUP = 32


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """``simulate`` quantization of weights in training; of layers' inputs, too, unless ``simulate_inputs`` is false."""

    simulate: Literal["none", "int8", "int4"] = "none"
    simulate_inputs: bool = True


@contextmanager
def simulate_quantization(module: nn.Module, options: SimulationOptions) -> Iterator[None]:
    """Lets the layers of ``module`` compute with rounded weights and inputs for a while."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if options.simulate == "none":
        layers = []
    try:
        for layer in layers:
            layer.forward = _rounded_forward(layer, options)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def fake_quantize_weight(weight: Tensor, bits: int, *, group: int | None = None) -> Tensor:
    """``weight [out, ...]`` on a symmetric grid and back, a scale a row, or a group of ``group`` values of a row."""
    limit = 2 ** (bits - 1) - 1
    flat = weight.flatten(1)
    if group is not None:
        padded = functional.pad(flat, (0, -flat.shape[1] % group))
        grouped = padded.view(flat.shape[0], -1, group)
        return _round(grouped, limit)[0].view(padded.shape)[:, : flat.shape[1]].reshape(weight.shape)
    return _round(flat, limit)[0].reshape(weight.shape)


def fake_quantize_inputs(values: Tensor, *, per_sample: bool) -> Tensor:
    """``values`` on an affine uint8 grid and back, a range for each last axis, or each sample; 0 stays 0."""
    flat = values.flatten(1) if per_sample else values
    low = flat.detach().amin(-1, keepdim=True).clamp_max(0)
    high = flat.detach().amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = torch.round(-low / scale)
    rounded = (torch.clamp(torch.round(flat / scale) + zero, 0, 255) - zero) * scale
    return (flat + (rounded - flat).detach()).reshape(values.shape)


def _round(values: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    scale = (values.detach().abs().amax(-1, keepdim=True) / limit).clamp_min(1e-12)
    rounded = torch.clamp(torch.round(values / scale), -limit, limit) * scale
    return values + (rounded - values).detach(), scale


def _rounded_forward(layer: Any, options: SimulationOptions) -> Any:
    bits, group = (8, None) if options.simulate == "int8" else (4, GROUP)
    linear = isinstance(layer, nn.Linear)

    def forward(values: Tensor) -> Tensor:
        weight = fake_quantize_weight(layer.weight, bits, group=group)
        if options.simulate_inputs:
            values = fake_quantize_inputs(values, per_sample=not linear)
        if linear:
            return functional.linear(values, weight, layer.bias)
        return layer._conv_forward(values, weight, layer.bias)  # type: ignore[no-any-return]

    return forward
