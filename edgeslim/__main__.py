"""``python -m edgeslim``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The entry point: runs the command line and exits with its code."""
    try:
        from edgeslim.cli import run

        code = run()
    except KeyboardInterrupt:  # while modules were still being loaded
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
