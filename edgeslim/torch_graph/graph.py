"""A graph as a function, and gradients through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Feed
from edgeslim.errors import BadInputError
from edgeslim.torch_graph.arithmetic import arithmetic_operators
from edgeslim.torch_graph.call import Call, node_name, to_tensor
from edgeslim.torch_graph.shapes import shape_operators
from edgeslim.torch_graph.windows import window_operators

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Objective", "TorchGraph", "output_gradients"]

Objective = Callable[[Mapping[str, "Tensor"], Feed], "Tensor"]
"""What a gradient is taken of: a tensor of any shape, made of a graph's outputs and of the inputs they belong to."""

Operands = list["Tensor | None"]


class TorchGraph:
    """An ONNX graph as a function of its inputs and its weights; the model itself is left as it is.

    ``weights`` holds the initializers of floating point by name, and ``inputs`` and ``outputs`` the graph's own names.
    """

    def __init__(self, model: ir.Model) -> None:
        """Looks through ``model`` and copies its constants.

        Raises:
            BadInputError: it has operators that there is no function for.
        """
        known = {**arithmetic_operators(), **shape_operators(), **window_operators()}
        graph = model.graph
        self._opset = graph.opset_imports.get("", 0)
        self._nodes: list[ir.Node] = []
        unknown: dict[str, str] = {}
        for node in graph:
            if node.domain not in ("", "ai.onnx") or node.op_type not in known:
                unknown.setdefault(f"{node.domain}.{node.op_type}".lstrip("."), node_name(node))
            self._nodes.append(node)
        if unknown:
            listed = ", ".join(f"{kind} (first at {place})" for kind, place in sorted(unknown.items()))
            raise BadInputError(
                "graph",
                f"operators without a gradient: {listed}",
                expected="operators that edgeslim.torch_graph has",
                hint='method or importance "activation" does without gradients',
            )
        self._known = known
        self.inputs = tuple(value.name or "" for value in graph.inputs)
        self.outputs = tuple(value.name or "" for value in graph.outputs)
        constants = {name: value.const_value for name, value in graph.initializers.items()}
        self._constants = {name: to_tensor(value.numpy()) for name, value in constants.items() if value is not None}
        self.weights: dict[str, Tensor] = {
            name: value for name, value in self._constants.items() if value.is_floating_point()
        }
        self._last_use = {
            value.name: index for index, node in enumerate(self._nodes) for value in node.inputs if value is not None
        }

    def run(
        self,
        feed: Feed,
        *,
        weights: Mapping[str, Tensor] | None = None,
        keep: Collection[str] = (),
        on_operands: Callable[[ir.Node, Operands], Operands] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs, and the values named in ``keep``, by name.

        Args:
            feed: inputs by name, NumPy arrays or tensors; those that the graph doesn't have are left out.
            weights: takes the place of initializers; the gradient flows to those that require one.
            keep: values in the middle of the graph to return beside the outputs.
            on_operands: sees each node's operands before it runs and returns those to use, such as quantized ones.

        Raises:
            BadInputError: an input is missing, a kept value isn't there, or a node's setting isn't covered.
        """
        missing = [name for name in self.inputs if name not in feed and name not in self._constants]
        if missing:
            raise BadInputError("feed", f"no input {missing[0]}", expected="inputs " + ", ".join(self.inputs))
        values: dict[str, Tensor] = {**self._constants, **(weights or {})}
        values |= {name: to_tensor(feed[name]) for name in self.inputs if name in feed}
        wanted = {*self.outputs, *keep}
        for index, node in enumerate(self._nodes):
            operands: Operands = [None if value is None else values[value.name or ""] for value in node.inputs]
            if on_operands is not None:
                operands = on_operands(node, operands)
            self._compute(node, operands, values)
            for value in node.inputs:
                if value is not None and self._last_use[value.name] == index and value.name not in wanted:
                    values.pop(value.name or "", None)
        lost = sorted(name for name in wanted if name not in values)
        if lost:
            raise BadInputError("graph", f"no value {lost[0]}", expected="the name of a value in the graph")
        return {name: values[name] for name in (*self.outputs, *keep)}

    def _compute(self, node: ir.Node, operands: Operands, values: dict[str, Tensor]) -> None:
        try:
            made = self._known[node.op_type](Call(node=node, operands=operands, opset=self._opset))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            shapes = ", ".join("-" if item is None else str(list(item.shape)) for item in operands)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInputError(
                node_name(node), f"{node.op_type} of {shapes}: {reason}", expected="operands that fit the operator"
            ) from error
        results: Sequence[Tensor] = made if isinstance(made, tuple) else (made,)
        for value, result in zip(node.outputs, results, strict=False):
            if value.name:
                values[value.name] = result


def output_gradients(
    graph: TorchGraph,
    feeds: Iterable[Feed],
    names: Sequence[str],
    *,
    objective: Objective | None = None,
    probes: int = 1,
    seed: int = 0,
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Gradients of random projections of the output by the values ``names``, for each feed and probe.

    Each array has its value's shape; a value without influence gives zeros. ``objective`` makes the tensor that is
    projected (by default all outputs of floating point, side by side). Equal arguments give equal gradients.

    Raises:
        BadInputError: what ``TorchGraph.run`` refuses.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in graph.weights.items()}
    for feed in feeds:
        tensors = {name: to_tensor(feed[name]) for name in graph.inputs if name in feed}
        given: dict[str, Any] = {
            name: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        with torch.enable_grad():
            found = graph.run(given, weights=leaves, keep=names)
            result = _all_outputs(graph, found) if objective is None else objective(found, feed)
        for probe in range(probes):
            direction = torch.randn(result.shape, generator=generator)
            gradients = torch.autograd.grad(
                result,
                [found[name] for name in names],
                direction,
                retain_graph=probe + 1 < probes,
                allow_unused=True,
                materialize_grads=True,
            )
            yield {name: _to_array(gradient) for name, gradient in zip(names, gradients, strict=True)}


def _all_outputs(graph: TorchGraph, found: Mapping[str, Tensor]) -> Tensor:
    import torch

    return torch.cat([found[name].reshape(-1) for name in graph.outputs if found[name].is_floating_point()])


def _to_array(gradient: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[Any] = gradient.detach().numpy()
    return array.astype(np.float32, copy=False)
