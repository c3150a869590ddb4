"""Progress on a terminal's stderr: a line a step, a bar for long work. Nothing is drawn where no person looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TerminalProgress"]

Item = TypeVar("Item")


class TerminalProgress:
    """Implements ``core.Progress`` with rich."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Yields ``items`` under a bar that vanishes when it is full."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        silent = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=silent) as bars:
            yield from bars.track(items, total=total, description=what)

    def step(self, what: str) -> None:
        """Prints the step's name."""
        self._console.print(f"· {what}", style="dim", highlight=False)
