"""A checkpoint's matrices to the nearest levels in blocks, one at a time and without data: the memory of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

from edgeslim.algorithms.blockwise import round_blocks
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.stored_blocks import StoredBlocks

__all__ = ["RoundBlocks"]


@dataclass(frozen=True, kw_only=True)
class RoundBlocks:
    """An ``Encode`` (``edgeslim.decoders.decoder_graph``): ``search`` fits each block's range by squared error."""

    bits: int = 4
    block_size: int = 32
    symmetric: bool = True
    search: bool = True

    def __call__(self, checkpoint: Checkpoint, name: str) -> StoredBlocks:
        """The tensor ``name`` in blocks."""
        made = round_blocks(
            checkpoint.read(name),
            bits=self.bits,
            block_size=self.block_size,
            symmetric=self.symmetric,
            search=self.search,
        )
        return StoredBlocks(weight=made)
