"""What an operator's function gets: the node, its operands, its settings, and how to refuse one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgeslim.errors import BadInputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Call", "Operator", "node_name", "to_tensor", "torch_dtype"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One node's turn: its operands (``None`` for one left out) and the version of its operator set."""

    node: ir.Node
    operands: Sequence[Tensor | None]
    opset: int

    def __getitem__(self, index: int) -> Tensor:
        operand = self.optional(index)
        if operand is None:
            raise self.refuse(f"operand {index} is missing")
        return operand

    def optional(self, index: int) -> Tensor | None:
        """An operand, or ``None`` where the node has none there."""
        return self.operands[index] if index < len(self.operands) else None

    def ints(self, index: int) -> list[int] | None:
        """A small tensor of integers, such as axes or a shape."""
        operand = self.optional(index)
        return None if operand is None else [int(item) for item in operand.reshape(-1).tolist()]

    def axes(self) -> list[int] | None:
        """Axes as the second operand (newer opsets) or as an attribute; ``None`` where neither names any."""
        given = self.ints(1)
        return list(self.get("axes", [])) or None if given is None else given or None

    def get(self, name: str, default: Any) -> Any:
        """An attribute's value."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def refuse(self, what: str) -> BadInputError:
        """The error for a setting that isn't covered."""
        return BadInputError(
            node_name(self.node), f"{self.node.op_type}: {what}", expected="a setting that edgeslim can differentiate"
        )


Operator = Callable[[Call], Any]


def node_name(node: ir.Node) -> str:
    """The node's name, or that of its first output."""
    return node.name or node.outputs[0].name or node.op_type


def to_tensor(array: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """A tensor with a copy of ``array``, bfloat16 from ``ml_dtypes`` included; a tensor as it is."""
    import torch

    if isinstance(array, torch.Tensor):
        return array
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def torch_dtype(number: int) -> Any:
    """The torch type of an ONNX element type, by its number."""
    import torch

    name = ir.DataType(number).name.lower()
    return getattr(torch, {"float": "float32", "double": "float64"}.get(name, name))
