"""Operators that compute: elementwise, reductions, products of matrices, normalizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeslim.torch_graph.call import Call, Operator, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["arithmetic_operators"]


def _div(call: Call) -> Tensor:
    return call[0] / call[1] if call[0].is_floating_point() else call[0].div(call[1], rounding_mode="trunc")


def _pow(call: Call) -> Tensor:
    import torch

    return torch.pow(call[0], call[1]).to(call[0].dtype)


def _mod(call: Call) -> Tensor:
    import torch

    return torch.fmod(call[0], call[1]) if call.get("fmod", 0) else torch.remainder(call[0], call[1])


def _clip(call: Call) -> Tensor:
    low, high = call.optional(1), call.optional(2)
    least = call.get("min", None) if low is None else low.item()
    most = call.get("max", None) if high is None else high.item()
    return call[0] if least is None and most is None else call[0].clamp(least, most)


def _with_operands(count: int, function: Callable[..., Any]) -> Operator:
    return lambda call: function(*(call[index] for index in range(count)))


def _fold(combine: Callable[[Any, Any], Any]) -> Operator:
    """A function of two operands as one of any number of them."""

    def run(call: Call) -> Any:
        result = call[0]
        for index in range(1, len(call.operands)):
            result = combine(result, call[index])
        return result

    return run


def _gelu(call: Call) -> Tensor:
    import torch

    return torch.nn.functional.gelu(call[0], approximate=call.get("approximate", "none"))


def _softmax(function: Callable[..., Any]) -> Operator:
    def run(call: Call) -> Any:
        if call.opset >= 13:
            return function(call[0], dim=call.get("axis", -1))
        axis = call.get("axis", 1) % call[0].dim()  # the old form flattens all that follows the axis
        return function(call[0].flatten(axis), dim=-1).reshape(call[0].shape)

    return run


def _reduce(function: Callable[[Any, tuple[int, ...], bool], Any]) -> Operator:
    def run(call: Call) -> Any:
        axes = call.axes()
        if axes is None and call.get("noop_with_empty_axes", 0):
            return call[0]
        return function(call[0], tuple(axes or range(call[0].dim())), bool(call.get("keepdims", 1)))

    return run


def _product(value: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:  # noqa: FBT001
    for axis in sorted((axis % value.dim() for axis in axes), reverse=True):
        value = value.prod(axis, keepdim=keep)
    return value


def _arg_max(call: Call) -> Tensor:
    if call.get("select_last_index", 0):
        raise call.refuse("select_last_index")
    return call[0].argmax(call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


def _gemm(call: Call) -> Tensor:
    left = call[0].T if call.get("transA", 0) else call[0]
    right = call[1].T if call.get("transB", 0) else call[1]
    product = left @ right * float(call.get("alpha", 1.0))
    bias = call.optional(2)
    return product if bias is None else product + bias * float(call.get("beta", 1.0))


def _layer_norm(call: Call) -> Tensor:
    import torch

    axis = call.get("axis", -1) % call[0].dim()
    shape = list(call[0].shape[axis:])
    return torch.nn.functional.layer_norm(call[0], shape, call[1], call.optional(2), call.get("epsilon", 1e-5))


def _rms_norm(call: Call) -> Tensor:
    axes = tuple(range(call.get("axis", -1) % call[0].dim(), call[0].dim()))
    mean = (call[0] * call[0]).mean(axes, keepdim=True)
    return call[0] * (mean + float(call.get("epsilon", 1e-5))).rsqrt() * call[1]


def _batch_norm(call: Call) -> Tensor:
    import torch

    if call.get("training_mode", 0):
        raise call.refuse("training_mode")
    return torch.nn.functional.batch_norm(
        call[0], call[3], call[4], call[1], call[2], training=False, eps=call.get("epsilon", 1e-5)
    )


def _instance_norm(call: Call) -> Tensor:
    import torch

    return torch.nn.functional.instance_norm(call[0], weight=call[1], bias=call[2], eps=call.get("epsilon", 1e-5))


def _prelu(call: Call) -> Tensor:
    import torch

    return torch.where(call[0] >= 0, call[0], call[0] * call[1])


def _einsum(call: Call) -> Tensor:
    import torch

    return torch.einsum(call.get("equation", ""), *call.operands)


def arithmetic_operators() -> dict[str, Operator]:
    """Those of this module, by name."""
    import torch
    from torch.nn import functional

    unary: dict[str, Callable[[Any], Any]] = {
        "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
        "Floor": torch.floor, "HardSwish": functional.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan,
        "Log": torch.log, "Mish": functional.mish, "Neg": torch.neg, "Not": torch.logical_not,
        "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
        "Sign": torch.sign, "Sin": torch.sin, "Softplus": functional.softplus, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
    }  # fmt: skip
    binary: dict[str, Callable[[Any, Any], Any]] = {
        "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
        "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul, "Mul": torch.mul, "Or": torch.logical_or,
        "Sub": torch.sub,
    }  # fmt: skip
    reductions: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
        "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
        "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
        "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
        "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
        "ReduceProd": _product,
        "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    }
    return {
        **{name: _with_operands(1, run) for name, run in unary.items()},
        **{name: _with_operands(2, run) for name, run in binary.items()},
        **{name: _reduce(run) for name, run in reductions.items()},
        "ArgMax": _arg_max,
        "BatchNormalization": _batch_norm,
        "Cast": lambda call: call[0].to(torch_dtype(call.get("to", 1))),
        "CastLike": lambda call: call[0].to(call[1].dtype),
        "Clip": _clip,
        "Div": _div,
        "Dropout": lambda call: call[0],
        "Einsum": _einsum,
        "Elu": lambda call: functional.elu(call[0], call.get("alpha", 1.0)),
        "Gelu": _gelu,
        "Gemm": _gemm,
        "HardSigmoid": lambda call: (call[0] * call.get("alpha", 0.2) + call.get("beta", 0.5)).clamp(0, 1),
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "LeakyRelu": lambda call: functional.leaky_relu(call[0], call.get("alpha", 0.01)),
        "LogSoftmax": _softmax(torch.log_softmax),
        "Max": _fold(torch.maximum),
        "Min": _fold(torch.minimum),
        "Mod": _mod,
        "PRelu": _prelu,
        "Pow": _pow,
        "RMSNormalization": _rms_norm,
        "Softmax": _softmax(torch.softmax),
        "Sum": _fold(torch.add),
        "Where": lambda call: torch.where(call[0], call[1], call[2]),
    }
