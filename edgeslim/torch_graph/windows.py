"""Convolution and pooling of ONNX as PyTorch functions: one or two spatial dimensions, any padding.

Padding is applied apart, since ONNX knows a different one on each side; after it, windows lie alike in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeslim.torch_graph.call import Call, Operator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["window_operators"]


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A window's settings, a number for each spatial dimension; ``pads`` are pairs (before, after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def pad(self, value: Tensor, fill: float) -> Tensor:
        """``value`` with its borders filled."""
        import torch

        flat = [side for pair in reversed(self.pads) for side in pair]
        return torch.nn.functional.pad(value, flat, value=fill) if any(flat) else value


def _window(call: Call, kernel: tuple[int, ...]) -> _Window:
    sizes = tuple(call[0].shape[2:])
    rank = len(sizes)
    if rank not in (1, 2):
        raise call.refuse(f"{rank} spatial dimensions")
    strides = tuple(call.get("strides", [1] * rank))
    dilations = tuple(call.get("dilations", [1] * rank))
    given = list(call.get("pads", [0] * 2 * rank))
    pads = tuple(zip(given[:rank], given[rank:], strict=True))
    how = call.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
            half = total // 2
            found.append((half, total - half) if how == "SAME_UPPER" else (total - half, half))
        pads = tuple(found)
    return _Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)


def _conv(call: Call) -> Tensor:
    from torch.nn import functional

    window = _window(call, tuple(call[1].shape[2:]))
    run = functional.conv1d if len(window.kernel) == 1 else functional.conv2d
    made: Tensor = run(
        window.pad(call[0], 0.0),
        call[1],
        call.optional(2),
        stride=window.strides,
        dilation=window.dilations,
        groups=call.get("group", 1),
    )
    return made


def _max_pool(call: Call) -> Tensor:
    from torch.nn import functional

    if len(call.node.outputs) > 1 or call.get("ceil_mode", 0):
        raise call.refuse("indices or ceil_mode")
    window = _window(call, tuple(call.get("kernel_shape", [])))
    run: Any = functional.max_pool1d if len(window.kernel) == 1 else functional.max_pool2d
    padded = window.pad(call[0], float("-inf"))
    made: Tensor = run(padded, window.kernel, stride=window.strides, dilation=window.dilations)
    return made


def _average_pool(call: Call) -> Tensor:
    import torch
    from torch.nn import functional

    window = _window(call, tuple(call.get("kernel_shape", [])))
    if call.get("ceil_mode", 0) or any(dilation != 1 for dilation in window.dilations):
        raise call.refuse("ceil_mode or dilations")
    run: Any = functional.avg_pool1d if len(window.kernel) == 1 else functional.avg_pool2d
    made: Tensor = run(window.pad(call[0], 0.0), window.kernel, stride=window.strides)
    if call.get("count_include_pad", 0):
        return made
    inside = window.pad(torch.ones_like(call[0][:1, :1]), 0.0)
    covered: Tensor = run(inside, window.kernel, stride=window.strides)
    return made / covered


def window_operators() -> dict[str, Operator]:
    """Those of this module, by name."""
    return {
        "AveragePool": _average_pool,
        "Conv": _conv,
        "GlobalAveragePool": lambda call: call[0].mean(tuple(range(2, call[0].dim())), keepdim=True),
        "GlobalMaxPool": lambda call: call[0].amax(tuple(range(2, call[0].dim())), keepdim=True),
        "MaxPool": _max_pool,
    }
