"""AWQ's scaling written into a float graph, before its weights are rounded.

The graph's outputs stay what they were. Where only the scaled layers take a value, the division goes into the constants
before it (``edgeslim.graphs.folding``: normalizations, linear layers, the value projection of an attention) and costs
nothing at run time; elsewhere one ``Mul`` does it, and then scaling has to save more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.algorithms.awq import search_scaling
from edgeslim.core import Progress
from edgeslim.graphs.folding import Fold, plan_fold
from edgeslim.quantizing.block_sites import Matrix
from edgeslim.quantizing.moments import Moments

__all__ = ["Scaled", "scale_inputs"]

WORTH_A_FOLD = 0.98
WORTH_A_MUL = 0.85
"""The output error that scaling may leave, as a share of that without."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """The second moments of the inputs by name as they are now, and how many inputs were scaled in which way."""

    moments: Mapping[str, Moments]
    folded: int
    multiplied: int


def scale_inputs(
    graph: ir.Graph,
    matrices: Sequence[Matrix],
    moments: Mapping[str, Moments],
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
    progress: Progress,
) -> Scaled:
    """Scales the inputs of linear layers where that pays; ``matrices`` are no longer those of the graph then.

    An input is left alone if a matrix that it meets is tied, or met by another input too.
    """
    found = dict(moments)
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.linears:
            groups.setdefault(matrix.linears[0].source_name, []).append(matrix)
    folded = multiplied = 0
    for name, group in progress.track(groups.items(), "scaling inputs", len(groups)):
        linears = [linear for matrix in group for linear in matrix.linears]
        if any(matrix.tied for matrix in group) or any(linear.source_name != name for linear in linears):
            continue
        second = moments[name].second
        best = search_scaling(
            [matrix.weight for matrix in group],
            moments[name].centered(),
            np.sqrt(np.diag(second)),
            bits=bits,
            block_size=block_size,
            symmetric=symmetric,
        )
        source, users = linears[0].source, [linear.nodes[0] for linear in linears]
        fold = plan_fold(source, users, len(second))
        if best.error >= best.plain_error * (WORTH_A_MUL if fold is None else WORTH_A_FOLD):
            continue
        scaled = moments[name].divided(best.scale)
        if fold is None:
            found[_multiply(graph, source, users, best.scale)] = scaled
            multiplied += 1
        else:
            fold.apply(best.scale)
            found[name] = scaled
            folded += 1
    return Scaled(moments=found, folded=folded, multiplied=multiplied)


def _multiply(graph: ir.Graph, source: ir.Value, users: Sequence[ir.Node], scale: npt.NDArray[np.float32]) -> str:
    """Puts a Mul before ``users``; returns its output's name."""
    name = f"{source.name}.scaled"
    factor = ir.val(f"{name}.factor", const_value=ir.tensor(np.float32(1) / scale, name=f"{name}.factor"))
    graph.register_initializer(factor)
    node = ir.node("Mul", [source, factor], name=name)
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
    first = next(node for node in graph if node in users)
    graph.insert_before(first, node)
    for user in users:
        user.replace_input_with(0, node.outputs[0])
    Fold(graph=graph, constants=(), users=tuple(users)).apply(scale)
    return name
