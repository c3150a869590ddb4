"""``python -m edgeslim``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The entry point: runs the command line and exits with its code."""
    from edgeslim.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
