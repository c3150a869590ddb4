"""A language model's KV cache in int8, in buffers of a fixed length, or both: memory at run time, not in the package.

Keys and values get a scale a channel from calibration text (``edgeslim.decoders.cache_form``), and ONNX Runtime's
attention reads the integers. The loops of the package's loaders take each form as it comes. Written last: it changes
no weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.decoders.cache_form import PAST_KEY, attention_nodes, fix_length, largest_magnitudes, quantize_cache
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import save_graph
from edgeslim.session import open_runner

__all__ = ["KvCache"]


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """``bits`` of a number in the cache: 8, or 32 as it is. ``length``: room for so many tokens; 0: it grows.

    Scales come from the first ``calibration_windows`` windows.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    bits: Literal[8, 32] = 8
    length: int = 0
    calibration_windows: int = 16

    def __post_init__(self) -> None:
        if self.length < 0 or self.length == 1:
            raise ValueError(f"length: {self.length}, expected 0, or 2 or more")
        if self.calibration_windows < 1:
            raise ValueError(f"calibration_windows: {self.calibration_windows}, expected at least 1")
        if self.bits == 32 and not self.length:
            raise ValueError("bits = 32 and no length, expected 8 bits, a length, or both")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Changes ``model`` in place.

        Raises:
            BadInputError: it isn't a language model's graph, or ``length`` doesn't hold a window of the data.
        """
        nodes = attention_nodes(model)
        metrics = {"bytes_a_token": float(sum(_bytes_a_token(node, self.bits) for node in nodes))}
        longest = max((batch.feed["input_ids"].shape[1] for batch in ctx.calibration), default=0)
        if self.length and self.length < longest:
            raise BadInputError(
                "kv_cache: length",
                str(self.length),
                expected=f"at least {longest}, as many tokens as a window of the data has",
                hint="max_length in [data] makes windows shorter",
            )
        if self.bits == 8:
            path, _ = save_graph(model, ctx.work_dir / "float-cache")
            batches = ctx.calibration[: self.calibration_windows]
            quantize_cache(model, largest_magnitudes(open_runner(path), batches, ctx.progress))
        if self.length:
            fix_length(model, self.length)
            metrics["cache_bytes"] = metrics["bytes_a_token"] * self.length
        return StepResult(model=model, changed=len(nodes), metrics=metrics)


def _bytes_a_token(node: ir.Node, bits: int) -> int:
    past = node.inputs[PAST_KEY]
    assert past is not None
    assert past.shape is not None
    return 2 * int(past.shape[1]) * int(past.shape[3]) * bits // 8  # type: ignore[arg-type]
