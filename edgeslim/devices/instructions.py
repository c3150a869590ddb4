"""Guest instructions of an emulated run, in whole and by operator.

A plugin of the emulator (``devices/c/count_instructions.c``) writes a line at each of the runner's marks: ``kind which
count``. Kinds 1 and 2 begin and end a stretch of work (1 decoding, 2 opening the session, 3 a run). Where the run is
profiled, the clock that ONNX Runtime reads is a counter of its readings, each marked by kind 3; so a time in the
runtime's own profile *is* the number of a reading, and the instructions between two of them are exact. Profiling itself
takes instructions, so those by operator are told as shares of what the operators took, apart from the plain count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslim.errors import CheckError

__all__ = ["Instructions", "OperatorShare", "count_instructions", "count_operators"]

BEGIN, END, CLOCK = 1, 2, 3
DECODE, LOAD, RUN = 1, 2, 3
MAX_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Instructions of decoding the weights (0 without), of opening the session, and of the last, warmed-up run."""

    decode: int
    load: int
    run: int


@dataclass(frozen=True, kw_only=True)
class OperatorShare:
    """What the nodes of one operator took in the last run."""

    operator: str
    nodes: int
    instructions: int


_Mark = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Event:
    """An event of the runtime's profile; ``begin`` and ``end`` are readings of its clock since it began."""

    name: str
    begin: int
    end: int
    operator: str


def count_instructions(marks: Path, where: str) -> Instructions:
    """Reads what the plugin wrote during a run without a profile.

    Raises:
        CheckError: marks are missing or malformed.
    """
    stretches = _stretches(_read_marks(marks, where))
    if LOAD not in stretches or RUN not in stretches:
        raise CheckError(where, "no marks of a whole run", expected="instructions counted by the plugin")
    return Instructions(
        decode=_length(stretches.get(DECODE)), load=_length(stretches[LOAD]), run=_length(stretches[RUN])
    )


def count_operators(marks: Path, profile: Path, where: str) -> tuple[OperatorShare, ...]:
    """Instructions of the last run by operator, the most first.

    Raises:
        CheckError: marks or profile are missing or malformed, or don't belong together.
    """
    read = _read_marks(marks, where)
    stretches = _stretches(read)
    if RUN not in stretches:
        raise CheckError(where, "no marks of a whole run", expected="instructions counted by the plugin")
    begin, end = stretches[RUN]
    counts = {which: count for kind, which, count in read if kind == CLOCK}
    last = max((which for which, count in counts.items() if begin <= count <= end), default=0)
    events = _read_profile(profile, where)
    runs = [event for event in events if event.name == "model_run"]
    if not last or not runs:
        raise CheckError(where, "a profile without a run", expected="ONNX Runtime's profile of the marked runs")
    final = runs[-1]
    base = last - final.end  # the last reading within the run is where it ends
    totals: dict[str, list[int]] = {}
    for event in events:
        if not event.name.endswith("_kernel_time") or not final.begin <= event.begin <= final.end:
            continue
        first, second = counts.get(base + event.begin), counts.get(base + event.end)
        if first is None or second is None:
            raise CheckError(where, "a profile that doesn't fit its marks", expected="both of one run")
        totals.setdefault(event.operator, []).append(second - first)
    shares = [OperatorShare(operator=name, nodes=len(each), instructions=sum(each)) for name, each in totals.items()]
    return tuple(sorted(shares, key=lambda share: -share.instructions))


def _read_marks(path: Path, where: str) -> list[_Mark]:
    marks: list[_Mark] = []
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckError(where, f"marks of more than {MAX_BYTES} bytes")
        for line in path.read_text(encoding="ascii").splitlines():
            kind, which, count = map(int, line.split())
            marks.append((kind, which, count))
    except (OSError, ValueError) as error:
        raise CheckError(
            where, f"instruction counts can't be read: {error}", hint="does this QEMU take plugins?"
        ) from error
    return marks


def _stretches(marks: Sequence[_Mark]) -> dict[int, tuple[int, int]]:
    """The last stretch of each kind of work: instructions so far at its begin and its end."""
    begun: dict[int, int] = {}
    found: dict[int, tuple[int, int]] = {}
    for kind, which, count in marks:
        if kind == BEGIN:
            begun[which] = count
        elif kind == END and which in begun:
            found[which] = (begun[which], count)
    return found


def _length(stretch: tuple[int, int] | None) -> int:
    return 0 if stretch is None else stretch[1] - stretch[0]


def _read_profile(path: Path, where: str) -> list[_Event]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckError(where, f"a profile of more than {MAX_BYTES} bytes")
        return [
            _Event(
                name=str(event["name"]),
                begin=int(event["ts"]),
                end=int(event["ts"]) + int(event["dur"]),
                operator=str(event.get("args", {}).get("op_name", "")),
            )
            for event in json.loads(path.read_text(encoding="utf-8"))
            if event.get("ph") == "X"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckError(where, f"the runtime's profile can't be read: {error}") from error
