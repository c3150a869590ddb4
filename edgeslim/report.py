"""How a report is shown to people; ``Report.to_json`` is for build steps.

A verdict is always a word, never a colour alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from edgeslim.core import Finding, Report, StepRecord

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["describe_change", "format_value", "print_report"]

_FIGURES = {"bytes": "size", "download_bytes": "download", "latency_ms": "latency", "drop": "loss"}
_STYLES = {"pass": "green", "fail": "bold red", "unjudged": "yellow", "measured": "dim"}


def print_report(report: Report, console: Console, *, written: bool, heading: str | None = None) -> None:
    """Prints steps, findings and notes; ``written`` says whether the package lies in its place."""
    from rich.markup import escape
    from rich.table import Table

    heading = heading or f"edgeslim build for {report.target}"
    console.print(heading, style="bold", highlight=False, markup=False)
    steps = Table(box=None, pad_edge=False)
    for column in ("step", "changed", "size", "time", "left alone, and why"):
        steps.add_column(column, justify="left" if column in ("step", "left alone, and why") else "right")
    for step in report.steps:
        size = format_value(float(step.bytes), "bytes") if step.bytes is not None else ""
        reasons = Counter(step.skipped.values()).most_common()
        skipped = "\n".join(f"{count} × {reason}" for reason, count in reasons)
        steps.add_row(
            f"{step.name} ({step.engine})" if step.engine else step.name,
            str(step.changed),
            size,
            f"{step.seconds:.1f} s",
            escape(skipped),
        )
    if report.steps:
        console.print(steps)
    for step in report.steps:
        for line in describe_change(step):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for (check, where), group in groupby(report.findings, key=lambda finding: (finding.check, finding.where)):
        console.print(f"\n[bold]{check}[/]  {escape(where)}", highlight=False)
        findings = Table(box=None, pad_edge=False, show_header=False)
        for width, justify in ((26, "left"), (12, "right"), (14, "right"), (10, "left")):
            findings.add_column(min_width=width, justify=cast(Any, justify), no_wrap=True)
        for finding in group:
            value = "–" if finding.value is None else format_value(finding.value, finding.unit)
            limit = "" if finding.limit is None else f"≤ {format_value(finding.limit, finding.unit)}"
            verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
            findings.add_row(f"  {escape(finding.metric)}", value, limit, verdict)
        console.print(findings)
    console.print()
    for finding in report.findings:
        if finding.note and finding.verdict in ("fail", "unjudged"):
            console.print(f"{finding.verdict}: {finding.metric}: {finding.note}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(_conclusion(report, written=written), markup=False, highlight=False, soft_wrap=True)


def describe_change(step: StepRecord) -> Iterator[str]:
    """What a stage made of size, download, latency and loss, and what it left as it was; nothing for other steps.

    A stage that fitted weights to a size says how many bits they take, and how good its prediction was.
    """
    if "storage_bits" in step.metrics:
        found = step.metrics
        predicted, packed = (format_value(found[name], "bytes") for name in ("predicted_bytes", "packed_bytes"))
        yield f"{step.name}: {found['storage_bits']:.2f} bits a weight; weights {packed}, predicted {predicted}"
    if not step.before:
        return
    parts = []
    for name, after in step.after.items():
        unit = "bytes" if name.endswith("bytes") else "ms" if name.endswith("_ms") else ""
        values = [format_value(value, unit) for value in (step.before.get(name, after), after)]
        label = _FIGURES.get(name, name)
        parts.append(f"{label} unchanged" if name in step.unchanged else f"{label} {values[0]} → {values[1]}")
    yield f"{step.name}: " + "; ".join(parts)
    yield f"  {step.measured_on}"


def format_value(value: float, unit: str) -> str:
    """A figure as people read it: ``20.9 MB``, ``12.3 ms``, ``0.9923``."""
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.2f} {name}"
        return f"{value:.0f} B"
    number = f"{value:.0f}" if value % 1 == 0 and abs(value) < 1e15 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def _conclusion(report: Report, *, written: bool) -> str:
    failed, unjudged = report.failed(), report.unjudged()
    parts = []
    if failed:
        parts.append(f"{len(failed)} failed: " + ", ".join(_name(finding) for finding in failed))
    if unjudged:
        parts.append(f"{len(unjudged)} unjudged: " + ", ".join(_name(finding) for finding in unjudged))
    size = format_value(float(report.artifact.bytes), "bytes")
    state = f"{report.artifact.path} ({size})" if written else "no package was written"
    return f"{state}; " + ("; ".join(parts) if parts else "all checks passed")


def _name(finding: Finding) -> str:
    return f"{finding.check}.{finding.metric}"
