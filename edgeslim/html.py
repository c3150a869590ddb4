"""``report.html``: what a build found, on one page that needs nothing else.

No script, no network, no font and no picture from outside: the page forbids them to itself by its content security
policy. Every text that comes from a model, a path or a note is escaped. It says nothing by colour alone, prints, and
follows the reader's light or dark scheme. From the same report and model comes the same page.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from edgeslim.html_charts import PATTERNS, Point, draw_bar, draw_levels, draw_points, draw_strips, text
from edgeslim.report import describe_change, format_value

if TYPE_CHECKING:
    from edgeslim.comparison import Comparison, Levels
    from edgeslim.core import Artifact, Finding, Report, StepRecord

__all__ = ["render_artifact", "render_report"]

GROUPS = ("embeddings", "attention", "feed-forward", "other")
SIGNS = {"pass": "✓", "fail": "✗", "unjudged": "?", "measured": "·"}
SHOWN_NAMES = 40
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_artifact(report: Report, artifact: Artifact) -> str:
    """The page of a build whose files still lie where ``artifact`` says.

    Raises:
        BadInputError: one of the two models can't be read.
    """
    from edgeslim.comparison import compare_files

    comparison = None
    if artifact.reference is not None:
        comparison = compare_files(artifact.reference, artifact.model, artifact.packed)
    return render_report(report, comparison)


def render_report(report: Report, comparison: Comparison | None) -> str:
    """The page of ``report``; without a ``comparison`` the pictures of layers and weights are missing."""
    name = Path(report.artifact.path).name
    title = f"{name} for {report.target}"
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{PATTERNS}\n",
        f'<header>\n<h1>{text(title)}</h1>\n<p class="lead">{_conclusion(report)}</p>\n{_cards(report)}</header>\n',
        _section("Limits", _findings(item for item in report.findings if item.limit is not None)),
    ]
    if comparison is not None and comparison.blocks:
        parts.append(_section("Bytes by layer", _blocks(comparison)))
    if comparison is not None and comparison.levels:
        parts.append(_section("The largest tensors on their grids", _levels(comparison.levels)))
    parts.append(_section("Quality against size", _tradeoff(report)))
    parts.append(_section("Latency", _latency(report)))
    parts.append(_section("What each step changed, and what it left alone", _steps(report)))
    parts.append(_section("Measured beside that", _findings(item for item in report.findings if item.limit is None)))
    parts.append(_section("Environment and notes", _environment(report)))
    return "".join(parts) + "</body>\n</html>\n"


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}</section>\n" if content else ""


def _conclusion(report: Report) -> str:
    judged = [item for item in report.findings if item.verdict in ("pass", "fail")]
    failed, unjudged = report.failed(), report.unjudged()
    if failed:
        words = f'<span class="fail">✗ {len(failed)} of {len(judged)} limits missed</span>'
    else:
        words = f'<span class="pass">✓ all {len(judged)} limits held</span>'
    if unjudged:
        words += f'; <span class="unjudged">? {len(unjudged)} could not be judged</span>'
    return words


def _cards(report: Report) -> str:
    cards = []
    before, after = _float_bytes(report), float(report.artifact.bytes)
    if before:
        share = f"from {format_value(before, 'bytes')} as float: {after / before:.1%} of it"
        cards.append(("package", format_value(after, "bytes"), share + _limit(_find(report, "package_bytes"))))
    else:
        cards.append(("package", format_value(after, "bytes"), _limit(_find(report, "package_bytes")).lstrip("; ")))
    drop = _find(report, "drop")
    if drop is not None and drop.value is not None:
        cards.append(("loss of quality", f"{drop.value:.4g}", (drop.note or drop.where) + _limit(drop)))
    ratio, p50 = _find(report, "latency_ratio"), _find(report, "latency_p50_ms")
    reference = _find(report, "latency_reference_p50_ms")
    if p50 is not None and p50.value is not None:
        compared = ""
        if ratio is not None and ratio.value is not None and reference is not None and reference.value is not None:
            compared = f"{ratio.value:.3g} of float's {reference.value:.3g} ms; "
        cards.append(("latency, p50", format_value(p50.value, "ms"), compared + "on the building host"))
    memory = _find(report, "peak_memory_bytes")
    if memory is not None and memory.value is not None:
        words = "added by opening and running it, on the building host" + _limit(memory)
        cards.append(("memory", format_value(memory.value, "bytes"), words))
    inner = "".join(
        f'<div class="card">{text(label)}<b>{text(value)}</b><small>{text(note)}</small></div>\n'
        for label, value, note in cards
    )
    return f'<div class="cards">\n{inner}</div>\n'


def _limit(finding: Finding | None) -> str:
    if finding is None or finding.limit is None:
        return ""
    return f"; limit {format_value(finding.limit, finding.unit)}, {finding.verdict}"


def _findings(findings: Iterable[Finding]) -> str:
    """One table, a body a check and place; empty without findings."""
    bodies = []
    for (check, where), group in groupby(findings, key=lambda item: (item.check, item.where)):
        heading = f'<tr><th colspan="4" scope="rowgroup">{text(check)} <small>{text(where)}</small></th></tr>\n'
        bodies.append(f"<tbody>\n{heading}{''.join(_finding(item) for item in group)}</tbody>\n")
    head = '<th>metric</th><th class="n">value</th><th class="n">limit</th><th>verdict</th>'
    return f'<table class="findings"><thead><tr>{head}</tr></thead>\n{"".join(bodies)}</table>\n' if bodies else ""


def _finding(item: Finding) -> str:
    value = "–" if item.value is None else format_value(item.value, item.unit)
    limit = "" if item.limit is None else f"≤ {format_value(item.limit, item.unit)}"
    note = f'<tr class="note"><td colspan="4">{text(item.note)}</td></tr>\n' if item.note else ""
    return (
        f'<tr><td>{_code(item.metric)}</td><td class="n">{text(value)}</td><td class="n">{text(limit)}</td>'
        f'<td class="verdict {item.verdict}">{SIGNS[item.verdict]} {item.verdict}</td></tr>\n{note}'
    )


def _code(name: str) -> str:
    """A name in code letters that may break after its separators."""
    return "<code>" + text(name).replace("_", "_<wbr>").replace("/", "/<wbr>").replace(".", ".<wbr>") + "</code>"


def _blocks(comparison: Comparison) -> str:
    longest = max(max(sum(block.before), sum(block.after)) for block in comparison.blocks)
    legend = "".join(
        f"<span>{draw_bar([0] * index + [1], 1, group)}{group}</span>" for index, group in enumerate(GROUPS)
    )
    rows = []
    for block in comparison.blocks:
        before, after = sum(block.before), sum(block.after)
        share = f", {after / before:.1%}" if before else ""
        figures = f"{format_value(before, 'bytes')} → {format_value(after, 'bytes')}{share}"
        rows.append(
            f'<div class="block"><div>{_code(block.block)}<small>{figures}</small></div><div>'
            f"{draw_bar(block.before, longest, f'before: {_split(block.before)}')}"
            f"{draw_bar(block.after, longest, f'after: {_split(block.after)}')}</div></div>\n"
        )
    return (
        '<p class="soft">Upper bar: the float export. Lower bar: as the container stores it. '
        f'All bars have one scale.</p>\n<p class="legend">{legend}</p>\n<div class="blocks">\n{"".join(rows)}</div>\n'
    )


def _split(parts: Sequence[int]) -> str:
    pairs = zip(GROUPS, parts, strict=True)
    return ", ".join(f"{group} {format_value(part, 'bytes')}" for group, part in pairs if part) or "nothing"


def _levels(levels: Iterable[Levels]) -> str:
    figures = []
    for item in levels:
        total = sum(item.counts)
        zeros = sum(count for place, count in zip(item.positions, item.counts, strict=True) if place == 0)
        entropy = math.log2(total) - sum(count * math.log2(count) for count in item.counts if count) / total
        facts = [f"{item.dtype} {' × '.join(map(str, item.shape))}", item.grid]
        if not item.grid.startswith("no grid"):
            facts += [f"{zeros / total:.1%} zeros", f"entropy {entropy:.2f} bits"]
        facts.append(f"{item.stored_bytes * 8 / total:.2f} bits stored")
        chart = draw_levels(item.positions, item.counts, item.step, f"how often each level of {item.name} is used")
        figures.append(
            f"<figure>{chart}<figcaption>{_code(item.name)}<br>{text('; '.join(facts))}</figcaption></figure>\n"
        )
    return (
        '<p class="soft">How many weights lie on each level. An even spread is hard to compress; unused levels, many '
        "zeros and a narrow peak are what entropy coding lives on.</p>\n"
        f'<div class="charts">\n{"".join(figures)}</div>\n'
    )


def _tradeoff(report: Report) -> str:
    drop, before = _find(report, "drop"), _float_bytes(report)
    if drop is None or drop.value is None or not math.isfinite(drop.value) or not before:
        return ""
    points = [Point(label="float export", bytes=before, drop=0.0)]
    for step in report.steps:
        measured = step.metrics.get("drop", step.after.get("drop"))
        if measured is not None and math.isfinite(measured) and step.bytes:
            points.append(Point(label=step.name, bytes=float(step.bytes), drop=measured))
    points.append(Point(label="this package", bytes=float(report.artifact.bytes), drop=drop.value))
    if len(points) > 2:  # names would lie on each other: the table has them
        points = [replace(point, label=f"{number} {point.label}") for number, point in enumerate(points, 1)]
    size = _find(report, "package_bytes")
    drawn = [replace(point, label=point.label.split(" ")[0]) for point in points] if len(points) > 2 else points
    chart = draw_points(drawn, size.limit if size else None, drop.limit, "loss of quality against size")
    rows = "".join(
        f'<tr><td>{text(point.label)}</td><td class="n">{format_value(point.bytes, "bytes")}</td>'
        f'<td class="n">{point.drop:.4g}</td></tr>\n'
        for point in points
    )
    note = f"<p class='soft'>Loss: {text(drop.note)}</p>\n" if drop.note else ""
    table = (
        f'<table><thead><tr><th>model</th><th class="n">size</th><th class="n">loss</th></tr></thead>\n{rows}</table>'
    )
    return f'{note}<div class="charts wide">\n<figure>{chart}</figure>\n<div>{table}</div>\n</div>\n'


def _latency(report: Report) -> str:
    p50 = _find(report, "latency_p50_ms")
    if p50 is None or not p50.samples:
        return ""
    reference = _find(report, "latency_reference_p50_ms")
    rows = [("float export", reference.samples)] if reference is not None and reference.samples else []
    rows.append(("this package", p50.samples))
    chart = draw_strips(rows, "single runs in milliseconds")
    words = "A dot is one run; the thick line is the median, the thin one the 95th percentile."
    figure = f"<figure>{chart}<figcaption>{words}</figcaption></figure>\n"
    return f'<p class="soft">{text(p50.where)}; {text(p50.note)}</p>\n{figure}'


def _steps(report: Report) -> str:
    rows = "".join(_step_row(step) for step in report.steps)
    table = (
        '<table><thead><tr><th>step</th><th class="n">changed</th><th class="n">size after it</th>'
        f'<th class="n">time</th></tr></thead>\n<tbody>\n{rows}</tbody></table>\n'
    )
    return table + "".join(_skipped(step) for step in report.steps) if report.steps else ""


def _step_row(step: StepRecord) -> str:
    size = "" if step.bytes is None else format_value(float(step.bytes), "bytes")
    metrics = "; ".join(f"{name} {_metric(name, value)}" for name, value in step.metrics.items())
    name = f"{step.name} ({step.engine})" if step.engine else step.name
    seconds = f"{step.seconds:.1f} s" + (", kept" if step.cached else "")
    notes = [*describe_change(step), *([metrics] if metrics else [])]
    note = "".join(f'<tr class="note"><td colspan="4">{text(line)}</td></tr>\n' for line in notes)
    return (
        f'<tr><td>{_code(name)}</td><td class="n">{step.changed}</td>'
        f'<td class="n">{size}</td><td class="n">{seconds}</td></tr>\n{note}'
    )


def _metric(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_value(value, "bytes")
    return f"{value:,.0f}" if math.isfinite(value) and value == int(value) else f"{value:.4g}"


def _skipped(step: StepRecord) -> str:
    """The tensors or nodes that a step left alone, by reason."""
    if not step.skipped:
        return ""
    reasons: Mapping[str, list[str]] = defaultdict(list)
    for name, reason in step.skipped.items():
        reasons[reason].append(name)
    items = "".join(
        f'<p>{len(names)} × {text(reason)}</p>\n<p class="names">{", ".join(_names(names))}</p>\n'
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    )
    return f"<h3>{text(step.name)} left alone</h3>\n{items}"


def _names(names: Sequence[str]) -> Iterator[str]:
    yield from (_code(name) for name in names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        yield f"and {len(names) - SHOWN_NAMES} more, all of them in report.json"


def _environment(report: Report) -> str:
    facts = {"target": report.target, "package": report.artifact.path, **report.environment}
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>\n" for name, value in facts.items())
    notes = "".join(f"<li>{text(note)}</li>\n" for note in report.notes)
    listed = f"<h3>Notes</h3>\n<ul>\n{notes}</ul>\n" if notes else ""
    return f'<table class="facts"><tbody>\n{rows}</tbody></table>\n{listed}'


def _find(report: Report, metric: str) -> Finding | None:
    return next((item for item in report.findings if item.metric == metric), None)


def _float_bytes(report: Report) -> float | None:
    """The size of the float export, where a build made one."""
    first = next((step for step in report.steps if step.name == "export"), None)
    return None if first is None or not first.bytes else float(first.bytes)
