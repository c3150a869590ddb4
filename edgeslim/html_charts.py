"""The pictures of ``report.html`` as inline SVG, from plain numbers.

Colours are classes that the page's style sheet sets for light and dark. What a colour says, a pattern, a position or a
word says too. Charts are drawn for a width of 360 and scale with the page; bars take per cents of their row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgeslim.report import format_value

__all__ = ["PATTERNS", "Point", "draw_bar", "draw_levels", "draw_points", "draw_strips", "text"]

PATTERNS = (
    '<svg width="0" height="0" class="defs" aria-hidden="true"><defs>'
    '<pattern id="p1" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="ink" width="1.5" height="6"/></pattern>'
    '<pattern id="p2" width="6" height="6" patternUnits="userSpaceOnUse"><circle class="ink" cx="3" cy="3" r="1"/>'
    '</pattern><pattern id="p3" width="4" height="4" patternUnits="userSpaceOnUse">'
    '<rect class="ink" width="4" height="1.5"/></pattern></defs></svg>'
)
"""Overlays for the second to fourth group of a stacked bar; they must stand once in the page."""

WIDTH = 360
STEMS = 32
SPIKE = 3.0
LINE = 13.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model in the picture of loss against size."""

    label: str
    bytes: float
    drop: float


def text(value: object) -> str:
    """``value`` as text of the page: markup escaped, control characters and direction marks replaced."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))
    return escape(plain)


def draw_bar(parts: Sequence[int], longest: int, title: str) -> str:
    """A stacked bar, as long as its sum is of ``longest``; part ``i`` has class ``gi`` and pattern ``pi``."""
    x, drawn = 0.0, []
    for index, part in enumerate(parts):
        width = 100 * part / max(1, longest)
        if width >= 0.05:
            place = f'x="{_n(x, 2)}%" width="{_n(width, 2)}%" height="12"'
            drawn.append(f'<rect class="g{index}" {place}/>')
            if index:
                drawn.append(f'<rect fill="url(#p{index})" {place}/>')
        x += width
    if not drawn and any(parts):  # too short to be seen, but there
        drawn.append(f'<rect class="g{max(range(len(parts)), key=parts.__getitem__)}" width="1" height="12"/>')
    return f'<svg class="bar" width="100%" height="12" role="img" aria-label="{text(title)}">{"".join(drawn)}</svg>'


def draw_levels(positions: Sequence[float], counts: Sequence[int], step: float, title: str) -> str:
    """How often each level is used. A level far above all others is cut off, and its share written beside it."""
    height, base, left, right = 118, 96, 6, WIDTH - 6
    low, high = positions[0] - step / 2, positions[-1] + step / 2
    span = high - low or 1.0
    scale = (right - left) / span

    def at(value: float) -> float:
        return left + (value - low) * scale

    tallest = max(range(len(counts)), key=counts.__getitem__)
    others = max((count for index, count in enumerate(counts) if index != tallest), default=0)
    top = counts[tallest] if counts[tallest] <= SPIKE * max(1, others) else 1.25 * max(1, others)
    tops = [base - min(1.0, count / max(1.0, top)) * (base - 16) for count in counts]
    if step and len(counts) > STEMS:
        path = f"M{_n(at(low))} {base}" + "".join(
            f"V{_n(y)}H{_n(at(position + step / 2))}" for position, y in zip(positions, tops, strict=True)
        )
        shape = f'<path class="fill" d="{path}V{base}Z"/>'
    else:
        wide = max(1.0, 0.8 * scale * step) if step else 2.0
        bars = [
            f"M{_n(at(position) - wide / 2)} {base}V{_n(y)}h{_n(wide)}V{base}Z"
            for position, y, count in zip(positions, tops, counts, strict=True)
            if count
        ]
        shape = f'<path class="fill" d="{"".join(bars)}"/>'
    marks = {low if step > 1 else positions[0]: "start", positions[-1]: "end"}
    if positions[0] < 0 < positions[-1] and 0.15 < (0 - low) / span < 0.85:
        marks[0.0] = "middle"
    labels = "".join(
        f'<text x="{_n(at(value))}" y="{base + 15}" text-anchor="{anchor}">{_short(value)}</text>'
        for value, anchor in marks.items()
    )
    note = ""
    if counts[tallest] > top:
        side, anchor = (6, "start") if at(positions[tallest]) < WIDTH / 2 else (-6, "end")
        share = counts[tallest] / max(1, sum(counts))
        note = (
            f'<text x="{_n(at(positions[tallest]) + side)}" y="24" text-anchor="{anchor}">'
            f"↑ {_short(positions[tallest])}: {share:.1%}</text>"
        )
    axis = f'<path class="axis" d="M{left} {base}H{right}"/>'
    return _svg(height, title, shape + axis + labels + note)


def draw_points(points: Sequence[Point], max_bytes: float | None, max_drop: float | None, title: str) -> str:
    """Loss of quality (downwards) against size; limits are dashed lines, and what they allow is shaded."""
    height, left, right, top, bottom = 240, 46, WIDTH - 10, 16, 196
    widest = 1.1 * max([point.bytes for point in points] + [max_bytes or 0.0])
    deepest = 1.25 * max([point.drop for point in points] + [max_drop or 0.0]) or 1.0
    lowest = min([0.0] + [1.25 * point.drop for point in points])

    def place(size: float, drop: float) -> tuple[float, float]:
        x = left + (right - left) * size / widest
        return x, top + (bottom - top) * (drop - lowest) / (deepest - lowest)

    drawn = []
    if max_bytes is not None or max_drop is not None:
        x, y = place(max_bytes if max_bytes is not None else widest, max_drop if max_drop is not None else deepest)
        drawn.append(f'<rect class="allowed" x="{left}" y="{top}" width="{_n(x - left)}" height="{_n(y - top)}"/>')
        if max_bytes is not None:
            drawn.append(f'<path class="limit" d="M{_n(x)} {top}V{bottom}"/>')
            drawn.append(f'<text x="{_n(x + 4)}" y="{bottom - 6}">≤ {format_value(max_bytes, "bytes")}</text>')
        if max_drop is not None:
            drawn.append(f'<path class="limit" d="M{left} {_n(y)}H{right}"/>')
            drawn.append(f'<text x="{right}" y="{_n(y - 5)}" text-anchor="end">drop ≤ {max_drop:g}</text>')
    for tick in _ticks(widest):
        x, _ = place(tick, 0.0)
        drawn.append(f'<path class="axis" d="M{_n(x)} {bottom}v4"/>')
        label = "0" if tick == 0 else format_value(tick, "bytes").replace(".00", "")
        drawn.append(f'<text x="{_n(x)}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    for tick in _ticks(deepest, 4):
        _, y = place(0.0, tick)
        drawn.append(f'<text x="{left - 6}" y="{_n(y + 4)}" text-anchor="end">{_short(tick)}</text>')
    drawn.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    drawn.append(f'<text x="{left}" y="{bottom + 36}">→ larger, ↓ worse</text>')
    places = [place(point.bytes, point.drop) for point in points]
    lines = _apart([y + 15 for _, y in places])
    for number, (point, (x, y), line) in enumerate(zip(points, places, lines, strict=True)):
        side, anchor = (9, "start") if x < WIDTH * 0.55 else (-9, "end")
        drawn.append(
            f'<circle class="float" cx="{_n(x)}" cy="{_n(y)}" r="5"/>'
            if number == 0
            else f'<rect class="ours" x="{_n(x - 4.5)}" y="{_n(y - 4.5)}" width="9" height="9"/>'
        )
        drawn.append(f'<text class="strong" x="{_n(x + side)}" y="{_n(line)}" text-anchor="{anchor}">')
        drawn.append(f"{text(point.label)}</text>")
    return _svg(height, title, "".join(drawn))


def draw_strips(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> str:
    """A dot for each sample in ms, a row a series, with lines at the 50th and 95th percentile.

    Samples far out are left at the edge, and counted there.
    """
    left, right, row_height, top = 8, WIDTH - 12, 78, 8
    p95 = max(percentile(samples, 95) for _, samples in rows)
    end = min(max(max(samples) for _, samples in rows), 1.6 * p95) * 1.06
    drawn = []

    def at(value: float) -> float:
        return left + (right - left) * min(value, end) / end

    for number, (label, samples) in enumerate(rows):
        y = top + number * row_height
        kind = "float" if number == 0 and len(rows) > 1 else "ours"
        p50, high = percentile(samples, 50), percentile(samples, 95)
        drawn.append(f'<text class="strong" x="{left}" y="{y + 12}">{text(label)}</text>')
        drawn.append(
            f'<text x="{right}" y="{y + 12}" text-anchor="end">p50 {p50:.1f} ms, p95 {high:.1f} ms, '
            f"{len(samples)} runs</text>"
        )
        for index, sample in enumerate(samples):
            jitter = (index * 7 % 11) * 2.4  # spread by order, so that equal times can be told apart
            drawn.append(f'<circle class="{kind} dot" cx="{_n(at(sample))}" cy="{_n(y + 26 + jitter)}" r="2.6"/>')
        drawn.append(f'<path class="mark" d="M{_n(at(p50))} {y + 20}v36"/>')
        drawn.append(f'<path class="mark thin" d="M{_n(at(high))} {y + 20}v36"/>')
        far = sum(sample > end for sample in samples)
        if far:
            drawn.append(f'<text x="{right}" y="{y + 68}" text-anchor="end">{far} beyond ›</text>')
    axis = top + len(rows) * row_height
    drawn.append(f'<path class="axis" d="M{left} {axis}H{right}"/>')
    for tick in _ticks(end):
        drawn.append(f'<path class="axis" d="M{_n(at(tick))} {axis}v4"/>')
        label = "0" if tick == 0 else f"{_short(tick)} ms"
        anchor = "start" if tick == 0 else "end" if at(tick) > right - 14 else "middle"
        drawn.append(f'<text x="{_n(at(tick))}" y="{axis + 17}" text-anchor="{anchor}">{label}</text>')
    return _svg(axis + 24, title, "".join(drawn))


def percentile(samples: Sequence[float], share: float) -> float:
    """The percentile of ``samples`` by linear interpolation, as NumPy gives it."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _apart(lines: Sequence[float]) -> list[float]:
    """``lines`` of text moved down until none lies on another."""
    moved = list(lines)
    free = -math.inf
    for index in sorted(range(len(lines)), key=lines.__getitem__):
        moved[index] = max(lines[index], free)
        free = moved[index] + LINE
    return moved


def _ticks(end: float, most: int = 5) -> list[float]:
    """0 and the multiples of 1, 2 or 5 times a power of ten up to ``end``, at most ``most`` steps."""
    rough = end / most
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(int(end / step + 1e-9) + 1)]


def _svg(height: float, title: str, content: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{text(title)}">{content}</svg>'
    )


def _n(value: float, digits: int = 1) -> str:
    """A coordinate without digits that nobody sees."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" if digits else str(round(value))


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
