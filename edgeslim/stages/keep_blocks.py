"""A language model's weights in the very blocks of few bits in which its GGUF file stores them.

``Q4_0``, ``Q4_1`` and ``Q8_0`` go into ``MatMulNBits`` and ``GatherBlockQuantized`` as they are
(``edgeslim.decoders.stored_blocks``), so no weight changes: the float graph that everything is compared with is the
*dequantized* file. What remains is the kernels' own arithmetic. On SmolLM2-135M (Q4_1, its table Q8_0; development text
of the sample; decode on one thread of an x86 with VNNI, of float32's time):

=========  =================================================  ====================  ======
kind       layers                                             perplexity ratio      decode
=========  =================================================  ====================  ======
float      all layers in float                                1.00000002            4.46
mixed      4 bits in float, 8 bits with int8 inputs           0.9998 (1,023 tokens) 0.54
int8       int8 inputs, a scale a block of 32                 1.0118                0.32
=========  =================================================  ====================  ======

Weights that the file stores as floats stay float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from edgeslim.core import Context, StepResult
from edgeslim.decoders.decoder_graph import as_stored, write_decoder
from edgeslim.errors import BadInputError
from edgeslim.graphs.block_forms import Arithmetic, arithmetic_levels
from edgeslim.graphs.graph import load_graph

__all__ = ["KeepBlocks"]


@dataclass(frozen=True, kw_only=True)
class KeepBlocks:
    """``arithmetic`` of the layers: ``int8`` inputs, in ``float``, or as the ``target`` machine is fastest.

    ``mixed`` is float for blocks of 4 bits, and int8 inputs for those of 8 bits, which have no fast float form.
    """

    level: ClassVar[Literal["torch", "graph"]] = "graph"
    anew: ClassVar[bool] = True

    arithmetic: Arithmetic = "target"

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
        levels = arithmetic_levels(self.arithmetic, ctx.target.machine)
        path = write_decoder(checkpoint, ctx.work_dir / "kept", encode=as_stored, levels=levels, progress=ctx.progress)
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
