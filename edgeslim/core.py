"""The types that flow through a build; only the standard library is imported here.

A *source* gives a model; *stages* change it; *export* turns it into ONNX; the *artifact* is what lies on disk;
*checks* yield *findings* about it; all of that ends in one *report*.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from edgeslim.target import Budget, TargetProfile

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Artifact",
    "ArtifactInfo",
    "Batch",
    "Budget",
    "Context",
    "Feed",
    "Finding",
    "Progress",
    "Quiet",
    "Report",
    "Runner",
    "Stage",
    "StepRecord",
    "StepResult",
    "Task",
    "TrainingData",
    "Verdict",
]

REPORT_SCHEMA = 1

Feed = Mapping[str, "np.ndarray[Any, Any]"]
"""One run's inputs (or outputs), by name."""

Runner = Callable[[Feed], Feed]
"""Runs a model once: inputs by name to outputs by name."""

Verdict = Literal["pass", "fail", "unjudged", "measured"]
"""``unjudged``: there is a limit, but nothing here could measure the value. ``measured``: a fact without a limit."""

Item = TypeVar("Item")
Model = TypeVar("Model")


class Progress(Protocol):
    """Tells a person how far long work has come."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Yields ``items`` while a bar named ``what`` moves on."""
        ...

    def step(self, what: str) -> None:
        """Says that a step named ``what`` begins."""
        ...


class Quiet:
    """A ``Progress`` that says nothing: the default of the Python interface."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:  # noqa: ARG002
        """Yields ``items``."""
        yield from items

    def step(self, what: str) -> None:
        """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of one run, and what is known about its rows.

    ``labels`` holds one class index a row where the data has labels; ``rows`` is the number of samples. Of a window of
    running text the last ``scored`` tokens count; ``None`` for anything else. ``original`` is what the float original
    takes of the same samples, where its tokenizer is another.
    """

    feed: Feed
    rows: int
    labels: tuple[int, ...] = ()
    scored: int | None = None
    original: Feed | None = None

    def for_original(self) -> Batch:
        """The same samples as the float original takes them."""
        return self if self.original is None else replace(self, feed=self.original, original=None)


class Task(Protocol):
    """What a model is for, and so how its quality is measured."""

    name: str

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """Metrics of ``candidate`` beside ``reference`` on held-out ``batches``, the reference's own included."""
        ...

    def drop(self, metrics: Mapping[str, float]) -> float:
        """The loss of quality that a budget's ``max_drop`` limits, 0 for a perfect candidate."""
        ...

    def note(self, metrics: Mapping[str, float]) -> str:
        """What ``drop`` stands for, in words for a report."""
        ...

    def manifest(self) -> Mapping[str, object]:
        """What an app must know to use the outputs: pooling, label names and the like."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a model is trained on, a sample a batch; no sample is also one of the evaluation data.

    ``validation`` was split off, decides when to stop, and shares no sample with ``training``. ``padding`` fills up
    shorter sequences, by input name. ``running`` says that samples are windows of running text: each token is the label
    of those before it.
    """

    training: Sequence[Batch]
    validation: Sequence[Batch]
    padding: Mapping[str, int] = field(default_factory=dict)
    running: bool = False

    def labelled(self) -> bool:
        """Whether each sample has a label."""
        return self.running or all(batch.labels for batch in (*self.training, *self.validation))


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may look at besides the model itself.

    ``calibration`` never shares a sample with the evaluation data. Whatever a stage writes goes below ``work_dir``.
    Stages on the torch model have ``training``, where the project names such data, the float original as ``teacher``
    (an ``edgeslim.training.torch_model.TorchModel``, frozen), and a folder for ``checkpoints`` that outlives a killed
    build. ``goal_bytes`` is what graph and coded weights may take together, where a budget limits the package's size.
    Of a language model there is the ``checkpoint`` (an ``edgeslim.decoders.checkpoint.Checkpoint``). ``tokenizer`` is
    the folder of the one that made the samples of texts, ``folder`` what paths in a recipe are relative to.
    """

    target: TargetProfile
    task: Task
    calibration: Sequence[Batch]
    reference: Runner
    seed: int
    work_dir: Path
    progress: Progress = field(default_factory=Quiet)
    training: TrainingData | None = None
    teacher: Any = None
    device: str = "cpu"
    checkpoints: Path | None = None
    goal_bytes: int | None = None
    checkpoint: Any = None
    tokenizer: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StepResult(Generic[Model]):
    """What a stage did: ``changed`` tensors or nodes, and by name why others were ``skipped``.

    ``tokenizer`` is a folder below the stage's ``work_dir`` with the tokenizer that the model wants from now on.
    """

    model: Model
    changed: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokenizer: Path | None = None


class Stage(Protocol[Model]):
    """One technique. A stage is a frozen dataclass whose fields are its keys in a recipe file."""

    level: ClassVar[Literal["torch", "graph", "either"]]

    def run(self, model: Model, ctx: Context) -> StepResult[Model]:
        """Applies the technique; ``TorchModel`` for level ``torch``, ``onnx_ir.Model`` for level ``graph``.

        A stage of level ``either`` takes both: the torch model where a later step of the recipe needs one.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The files of a finished build, and the float export that they are measured against, where there is one."""

    package: Path
    model: Path
    weights: Path
    packed: Path
    manifest: Path
    reference: Path | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing measured: ``where`` says on what (a file, ``host``, ``device``).

    ``samples`` are the single measurements behind the value, where it sums up several.
    """

    check: str
    metric: str
    value: float | None
    unit: str
    limit: float | None
    verdict: Verdict
    where: str
    note: str = ""
    samples: tuple[float, ...] = ()

    @classmethod
    def at_most(
        cls,
        check: str,
        metric: str,
        value: float | None,
        unit: str,
        limit: float | None,
        where: str,
        note: str = "",
        samples: Sequence[float] = (),
    ) -> Finding:
        """A finding that passes while ``value`` is at most ``limit``; without a value it is unjudged."""
        verdict: Verdict
        if limit is None:
            verdict = "measured"
        elif value is None:
            verdict = "unjudged"
        else:
            verdict = "pass" if value <= limit else "fail"
        return cls(
            check=check,
            metric=metric,
            value=value,
            unit=unit,
            limit=limit,
            verdict=verdict,
            where=where,
            note=note,
            samples=tuple(samples),
        )


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """The package as the report names it."""

    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step as the report tells it; ``bytes`` is the model's size after it (weights and graph).

    ``cached`` says that its result was there already, ``engine`` which library did the work where there is a choice.
    ``before`` and ``after`` are the model's ``bytes``, ``download_bytes``, ``latency_ms`` and ``drop`` on both sides of
    a stage, ``unchanged`` those that it left as they were, and ``measured_on`` says on what (``edgeslim.stage_cost``).
    """

    name: str
    seconds: float
    changed: int
    bytes: int | None
    skipped: Mapping[str, str]
    metrics: Mapping[str, float]
    cached: bool = False
    engine: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()
    measured_on: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a build found, in the form of ``report.json``."""

    target: str
    artifact: ArtifactInfo
    steps: tuple[StepRecord, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    schema: int = REPORT_SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, ``schema`` first; a finding has ``samples`` only where there are some."""
        plain = asdict(self)
        for finding in plain["findings"]:
            if not finding["samples"]:
                del finding["samples"]
        return {"schema": plain.pop("schema"), **plain}

    def to_json(self) -> str:
        """The text of ``report.json``; figures that are NaN or infinite, which JSON doesn't know, become null."""
        return json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False) + "\n"

    def failed(self) -> tuple[Finding, ...]:
        """The findings whose verdict is ``fail``."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def unjudged(self) -> tuple[Finding, ...]:
        """The findings that have a limit but could not be measured."""
        return tuple(finding for finding in self.findings if finding.verdict == "unjudged")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
