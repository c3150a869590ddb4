"""Which of several processes this one is, where a build was started by ``accelerate launch`` or ``torchrun``.

All of them train together; the first alone exports, packs and publishes. The launchers tell by environment variables;
under MPI it is MPI that does.
"""

from __future__ import annotations

import os

__all__ = ["process_count", "process_rank"]

_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return _number(_COUNTS, 1)


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return _number(_RANKS, 0)


def _number(names: tuple[str, ...], default: int) -> int:
    # Job schedulers set such variables too, for other reasons: only these launchers count.
    launched = any(key.startswith("ACCELERATE_") or key == "TORCHELASTIC_RUN_ID" for key in os.environ)
    found = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in found if launched and text.isdecimal()), default)
