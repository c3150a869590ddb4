"""Operators that move values and compute shapes. Shapes are ordinary int64 tensors, as in the graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeslim.torch_graph.call import Call, Operator, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["shape_operators"]


def _constant(call: Call) -> Tensor:
    import torch

    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        attribute = call.node.attributes.get(name)
        if attribute is None:
            continue
        if name == "value":
            return to_tensor(attribute.as_tensor().numpy())
        return torch.tensor(attribute.value, dtype=torch.float32 if "float" in name else torch.int64)
    raise call.refuse("a constant that is no number")


def _shape(call: Call) -> Tensor:
    import torch

    dims = list(call[0].shape)
    end = call.get("end", None)
    return torch.tensor(dims[call.get("start", 0) : len(dims) if end is None else end], dtype=torch.int64)


def _reshape(call: Call) -> Tensor:
    wanted = call.ints(1) or []
    if not call.get("allowzero", 0):
        wanted = [call[0].shape[index] if dim == 0 else dim for index, dim in enumerate(wanted)]
    return call[0].reshape(wanted)


def _flatten(call: Call) -> Tensor:
    axis = call.get("axis", 1)
    axis += call[0].dim() if axis < 0 else 0
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


def _transpose(call: Call) -> Tensor:
    return call[0].permute(*call.get("perm", list(range(call[0].dim()))[::-1]))


def _unsqueeze(call: Call) -> Tensor:
    axes = call.axes() or []
    rank = call[0].dim() + len(axes)
    value = call[0]
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _squeeze(call: Call) -> Tensor:
    axes = call.axes()
    return call[0].squeeze() if axes is None else call[0].squeeze(tuple(axes))


def _concat(call: Call) -> Tensor:
    import torch

    return torch.cat([item for item in call.operands if item is not None], dim=call.get("axis", 0))


def _split(call: Call) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    sizes = call.ints(1) or list(call.get("split", []))
    if not sizes:
        count = len(call.node.outputs)
        chunk = -(-call[0].shape[axis] // count)
        sizes = [chunk] * (count - 1) + [call[0].shape[axis] - chunk * (count - 1)]
    import torch

    return tuple(torch.split(call[0], sizes, dim=axis))


def _slice(call: Call) -> Tensor:
    import torch

    value = call[0]
    starts, ends = call.ints(1), call.ints(2)
    assert starts is not None
    assert ends is not None
    axes = call.ints(3) or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, call.ints(4) or [1] * len(starts), strict=True):
        places = range(value.shape[axis])[start:end:step]
        if step == 1:
            value = value.narrow(axis, places.start if places else 0, len(places))
        else:
            value = value.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return value


def _gather(call: Call) -> Tensor:
    import torch

    axis = call.get("axis", 0) % call[0].dim()
    index = call[1].to(torch.int64)
    index = index + (index < 0) * call[0].shape[axis]
    taken = call[0].index_select(axis, index.reshape(-1))
    return taken.reshape([*call[0].shape[:axis], *index.shape, *call[0].shape[axis + 1 :]])


def _gather_elements(call: Call) -> Tensor:
    import torch

    axis = call.get("axis", 0)
    return torch.gather(call[0], axis, call[1] + (call[1] < 0) * call[0].shape[axis])


def _gather_nd(call: Call) -> Tensor:
    if call.get("batch_dims", 0):
        raise call.refuse("batch_dims")
    return call[0][tuple(call[1].movedim(-1, 0))]


def _scatter_nd(call: Call) -> Tensor:
    if call.get("reduction", "none") != "none":
        raise call.refuse("a reduction")
    value = call[0].clone()
    value[tuple(call[1].movedim(-1, 0))] = call[2]
    return value


def _expand(call: Call) -> Tensor:
    wanted = call.ints(1) or []
    shape = [*call[0].shape]
    rank = max(len(wanted), len(shape))
    padded = zip([1] * (rank - len(shape)) + shape, [1] * (rank - len(wanted)) + wanted, strict=True)
    return call[0].expand([have if want == 1 else want for have, want in padded])


def _pad(call: Call) -> Tensor:
    import torch

    rank = call[0].dim()
    pads = call.ints(1) or list(call.get("pads", []))
    axes = [axis % rank for axis in call.ints(3) or range(rank)]
    each = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    last = min((axis for axis, pair in each.items() if any(pair)), default=rank)
    flat = [side for axis in reversed(range(last, rank)) for side in each.get(axis, (0, 0))]
    mode = call.get("mode", "constant")
    if mode == "constant":
        fill = call.optional(2)
        return torch.nn.functional.pad(call[0], flat, value=call.get("value", 0.0) if fill is None else fill.item())
    if mode not in ("reflect", "edge") or any(side < 0 for side in flat):
        raise call.refuse(f'mode "{mode}"')
    return torch.nn.functional.pad(call[0], flat, mode="replicate" if mode == "edge" else mode)


def _range(call: Call) -> Tensor:
    import torch

    return torch.arange(*(call[index].item() for index in range(3)), dtype=call[0].dtype)


def _constant_of_shape(call: Call) -> Tensor:
    import torch

    attribute = call.node.attributes.get("value")
    fill = torch.zeros(1) if attribute is None else to_tensor(attribute.as_tensor().numpy())
    return fill.reshape(()).expand(call.ints(0) or []).clone()


def _trilu(call: Call) -> Tensor:
    diagonal = 0 if call.optional(1) is None else int(call[1].item())
    return call[0].triu(diagonal) if call.get("upper", 1) else call[0].tril(diagonal)


def _cumsum(call: Call) -> Tensor:
    axis = int(call[1].item())
    value = call[0].flip(axis) if call.get("reverse", 0) else call[0]
    total = value.cumsum(axis, dtype=value.dtype)
    total = total - value if call.get("exclusive", 0) else total
    return total.flip(axis) if call.get("reverse", 0) else total


def shape_operators() -> dict[str, Operator]:
    """Those of this module, by name."""
    import torch

    return {
        "Concat": _concat,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "CumSum": _cumsum,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "Pad": _pad,
        "Range": _range,
        "Reshape": _reshape,
        "ScatterND": _scatter_nd,
        "Shape": _shape,
        "Size": lambda call: torch.tensor(call[0].numel()),
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": lambda call: call[0].repeat(call.ints(1) or []),
        "Transpose": _transpose,
        "Trilu": _trilu,
        "Unsqueeze": _unsqueeze,
    }
