"""Second moments of what layers take in: H = XᵀX over the calibration data, for pruning and factorization.

The rows of X are what a weight's matrix [in, out] is multiplied with: the last axis of a MatMul's or Gemm's input, the
patches (channel, row, column) under a convolution's kernel. Memory doesn't grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Context
from edgeslim.graphs.graph_weights import Weight
from edgeslim.quantizing.moments import channel_rows, collect_moments
from edgeslim.quantizing.probe import open_probe

__all__ = ["input_moments", "moment_key", "patches"]

Array = npt.NDArray[np.float64]

MAX_PATCH_ROWS = 4096
"""Of a convolution's patches, so many a sample are taken, evenly spaced."""


def moment_key(weight: Weight) -> str:
    """Weights with the same key have the same inputs, and so the same moments."""
    use = weight.uses[0]
    names = ",".join(sorted({value.name or "" for value in weight.sources}))
    if use.kind != "Conv":
        return names
    return f"{names}|{weight.array.shape[2:]}|{_geometry(use.node, weight.array.ndim - 2)}"


def input_moments(model: ir.Model, weights: Sequence[Weight], ctx: Context) -> dict[str, Array]:
    """XᵀX of each weight's inputs, float64 [in, in], by ``moment_key``.

    Raises:
        BadInputError: there is no calibration data, or a value isn't finite.
    """
    sources = {source.name or "": source for weight in weights for source in weight.sources}
    first = {moment_key(weight): weight for weight in weights}

    def rows(key: str, values: Mapping[str, npt.NDArray[Any]]) -> Iterator[npt.NDArray[np.float32]]:
        weight = first[key]
        for source in weight.sources:
            yield _rows(weight, np.asarray(values[source.name or ""], np.float32))

    run = open_probe(model, list(sources.values()), ctx.work_dir / "probe")
    found = collect_moments(run, list(first), ctx.calibration, progress=ctx.progress, rows=rows)
    return {key: moments.second for key, moments in found.items()}


def patches(
    values: npt.NDArray[np.float32],
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> npt.NDArray[np.float32]:
    """What lies under a kernel at each of its places: [B, C, *space] to [places, C·prod(kernel)], as im2col."""
    rank = len(kernel)
    padded = np.pad(values, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows: npt.NDArray[np.float32] = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = tuple(slice(None, None, stride) for stride in strides)
    inside = tuple(slice(None, None, dilation) for dilation in dilations)
    windows = windows[(slice(None), slice(None), *steps, *inside)]
    moved = np.moveaxis(windows, 1, 1 + rank)
    return np.ascontiguousarray(moved).reshape(-1, values.shape[1] * int(np.prod(kernel)))


def _rows(weight: Weight, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    use = weight.uses[0]
    if use.kind != "Conv":
        return channel_rows(values)
    kernel = weight.array.shape[2:]
    strides, dilations, pads = _geometry(use.node, len(kernel))
    rows = patches(
        values,
        kernel,
        strides=strides,
        dilations=dilations,
        pads=_resolve_pads(use.node, values, kernel, strides, pads),
    )
    limit = MAX_PATCH_ROWS * len(values)
    return rows if len(rows) <= limit else rows[:: -(-len(rows) // limit)]


def _geometry(node: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    def ints(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        found = node.attributes.get(key)
        return default if found is None else tuple(found.as_ints())

    return ints("strides", (1,) * rank), ints("dilations", (1,) * rank), ints("pads", (0,) * 2 * rank)


def _resolve_pads(
    node: ir.Node,
    values: npt.NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
) -> tuple[int, ...]:
    found = node.attributes.get("auto_pad")
    mode = "NOTSET" if found is None else found.as_string()
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(pads) if mode == "NOTSET" else (0,) * 2 * len(kernel)
    _, dilations, _ = _geometry(node, len(kernel))
    totals = []
    for size, length, stride, dilation in zip(values.shape[2:], kernel, strides, dilations, strict=True):
        places = -(-size // stride)
        totals.append(max((places - 1) * stride + (length - 1) * dilation + 1 - size, 0))
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return tuple(less + more if mode == "SAME_UPPER" else more + less)
