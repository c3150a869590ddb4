"""Which of several processes this one is, where a build was started by ``accelerate launch``.

All of them train together; the first alone exports, packs and publishes. The launcher tells by environment variables.
"""

from __future__ import annotations

import os

__all__ = ["process_count", "process_rank"]


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return _number("RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    # Other launchers set these variables too, for other reasons: only accelerate's count.
    return int(text) if text.isdecimal() and any(key.startswith("ACCELERATE_") for key in os.environ) else default
