"""A language model's weights in the very blocks of few bits in which its GGUF file stores them.

``Q4_0``, ``Q4_1`` and ``Q8_0`` go into ``MatMulNBits`` and ``GatherBlockQuantized`` as they are
(``edgeslim.decoders.stored_blocks``), so no weight changes: the float graph that everything is compared with is the
*dequantized* file. What remains is the kernels' own arithmetic, int8 inputs with a scale a block where the
``accuracy_level`` is 4. The scales are float16 in the file, which the container's coder sees.

Weights that the file stores as floats stay float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.decoders.decoder_graph import as_stored, write_decoder
from edgeslim.errors import BadInputError
from edgeslim.graphs.block_forms import accuracy_level
from edgeslim.graphs.graph import load_graph

__all__ = ["KeepBlocks"]


@dataclass(frozen=True, kw_only=True)
class KeepBlocks:
    """``accuracy_level`` is MatMulNBits' own: 4 takes int8 inputs, 0 computes in float."""

    level: ClassVar[Literal["torch", "graph"]] = "graph"

    accuracy_level: Literal["target", 0, 1, 4] = "target"

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """A new graph instead of ``model``, from the checkpoint that it was written from.

        Raises:
            BadInputError: the source is no checkpoint with blocks, or a stage before this one changed the graph.
        """
        checkpoint = ctx.checkpoint
        if checkpoint is None or not _stores_blocks(checkpoint):
            raise BadInputError(
                "keep_blocks",
                "a source without blocks of few bits",
                expected="a GGUF file of a Llama-shaped decoder in Q4_0, Q4_1 or Q8_0",
                hint="quantize_decoder makes blocks of any weights",
            )
        if any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in model.graph):
            raise BadInputError("keep_blocks", "a graph that is quantized already", expected="the float graph")
        machine = ctx.target.machine
        level = self.accuracy_level
        # One number serves both widths: 8 bits have no fast float form, and 4 bits follow the machine.
        chosen = accuracy_level(machine.isa, machine.features, 4) if level == "target" else level
        path = write_decoder(
            checkpoint, ctx.work_dir / "kept", encode=as_stored, accuracy_level=chosen, progress=ctx.progress
        )
        made = load_graph(path)
        kept = [node for node in made.graph if node.op_type == "MatMulNBits"]
        floats = [node for node in made.graph if node.op_type == "MatMul" and not str(node.name).endswith(".minima")]
        return StepResult(
            model=made,
            changed=len(kept),
            skipped={node.name or "": "stored as floats" for node in floats},
            metrics={"layers_of_blocks": float(len(kept)), "layers_of_floats": float(len(floats))},
        )


def _stores_blocks(checkpoint: object) -> bool:
    """Whether the checkpoint is of a kind that has blocks at all."""
    return hasattr(checkpoint, "kinds")
