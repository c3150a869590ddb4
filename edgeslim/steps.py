"""The steps of a build: each makes the files of one folder, once for each set of inputs, and leaves a record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgeslim.cache import Cache, hash_file, hash_parts
from edgeslim.core import Progress, StepRecord
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields

__all__ = ["StepFacts", "Steps", "hash_folder"]


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What a step says of itself; it is kept with its files. ``bytes`` is the model's size after it.

    ``engine`` names the library that did the work, where there is a choice. The last four are those of ``StepRecord``.
    """

    changed: int
    engine: str = ""
    bytes: int | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    measured_on: str = ""


def hash_folder(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of each file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


class Steps:
    """Runs steps in folders below ``work``; ``versions`` are part of every key."""

    def __init__(self, work: Path, cache: Cache | None, versions: Mapping[str, str], progress: Progress) -> None:
        self.records: list[StepRecord] = []
        self._work = work
        self._cache = cache
        self._versions = versions
        self._progress = progress

    def key(self, name: str, inputs: tuple[object, ...]) -> str:
        """What the result of a step is found by: a hash of its name, its inputs and the versions."""
        return hash_parts(name, inputs, self._versions)

    def run(
        self, name: str, inputs: tuple[object, ...], make: Callable[[Path, Path], StepFacts], *, reuse: bool = True
    ) -> Path:
        """The folder that ``make(folder, scratch)`` fills, or that an earlier build filled from equal ``inputs``.

        ``make`` creates ``folder`` and may leave anything in ``scratch``, which exists. With ``reuse`` false the
        inputs aren't all known, and the step always runs.
        """
        started = time.perf_counter()
        cache = self._cache if reuse else None
        key = self.key(name, inputs)
        folder = self._work / f"{len(self.records)}-{name}"
        stored = None if cache is None else cache.fetch(key, folder)
        facts = None if stored is None else _parse_facts(stored, name)
        if facts is None:
            shutil.rmtree(folder, ignore_errors=True)
            self._progress.step(name)
            scratch = self._work / f"{len(self.records)}-{name}-scratch"
            scratch.mkdir()
            facts = make(folder, scratch)
            shutil.rmtree(scratch, ignore_errors=True)
            if cache is not None:
                cache.store(key, name, folder, asdict(facts))
            cached = False
        else:
            self._progress.step(f"{name} (unchanged)")
            cached = True
        self.records.append(
            StepRecord(
                name=name,
                seconds=round(time.perf_counter() - started, 3),
                changed=facts.changed,
                bytes=facts.bytes,
                skipped=dict(facts.skipped),
                metrics=dict(facts.metrics),
                cached=cached,
                engine=facts.engine,
                before=dict(facts.before),
                after=dict(facts.after),
                unchanged=facts.unchanged,
                measured_on=facts.measured_on,
            )
        )
        return folder


def _parse_facts(stored: Mapping[str, object], name: str) -> StepFacts | None:
    try:
        return parse_fields(StepFacts, stored, name)
    except BadInputError:  # an entry that somebody tampered with is no entry
        return None
