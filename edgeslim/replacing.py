"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_when_whole"]


@contextmanager
def replaced_when_whole(out: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of ``out`` when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)  # with the mode that the umask gives, unlike tempfile's 0600
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
