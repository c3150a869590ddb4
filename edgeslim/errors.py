"""Every error that edgeslim shows to a user, with its exit code.

An error says where it happened, what was found, what was expected, and then how to go on::

    recipe.toml: steps[0]: unknown key "methd"
      expected: one of method, percentile, per_channel
      hint: did you mean "method"?

One subclass a kind of trouble, one exit code a subclass. The codes are part of the command line's contract:
0 fine, 1 a defect of edgeslim itself, 2 usage, 3 bad input, 4 missed budget, 5 missing tool, 6 failed check,
7 trouble with a device, 130 interrupted, 143 terminated, 141 nobody reads the output any more.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "BadInputError",
    "BudgetError",
    "CheckError",
    "DeviceError",
    "EdgeslimError",
    "MissingToolError",
    "UsageError",
    "near_miss",
]


class EdgeslimError(Exception):
    """A trouble that the user can act on. ``exit_code`` is what the process ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, got: str, *, expected: str = "", hint: str = "") -> None:
        """``where`` names the file, option or layer; ``got`` what was found there."""
        self.where = where
        self.got = got
        self.expected = expected
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.got}" if self.where else self.got]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        state = {"where": self.where, "got": self.got, "expected": self.expected, "hint": self.hint}
        return (type(self).__new__, (type(self),), state)


class UsageError(EdgeslimError):
    """The command line itself is wrong: an unknown target, two options that exclude each other."""

    exit_code = 2


class BadInputError(EdgeslimError):
    """A file or value that edgeslim was given can't be used: model, data, recipe, profile, package."""

    exit_code = 3


class BudgetError(EdgeslimError):
    """The build is whole and correct, but larger, slower or less accurate than its budget allows."""

    exit_code = 4


class MissingToolError(EdgeslimError):
    """An optional part isn't installed: a Python extra, a compiler, adb."""

    exit_code = 5


class CheckError(EdgeslimError):
    """A correctness check failed: a round trip that loses bytes, an operator that the target lacks."""

    exit_code = 6


class DeviceError(EdgeslimError):
    """A device can't be used: out of reach or unplugged, full, busy, of another instruction set, or it hangs."""

    exit_code = 7


def near_miss(name: str, known: Iterable[str]) -> str:
    """A hint ``did you mean "x"?`` for a misspelt ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""
