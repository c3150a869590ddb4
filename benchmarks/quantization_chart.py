"""The picture of the fronts: packed size against 1 - cosine, as one SVG that stands in a README.

A README can't paint for light and dark, so the picture brings its own light ground with a frame. edgeslim's are filled
squares on a line, peers are hollow circles: told apart by shape, fill and label. Only what no other point of the same
side beats in both size and loss lies on its line.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["draw_fronts"]

WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 74, 736, 54, 412
LINE = 14.0
STYLE = (
    ".s{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#333}"
    ".s{stroke:#fff;stroke-width:3px;paint-order:stroke}.h{font-size:15px;font-weight:600}"
    ".o{fill:#0b5cad}.l{font-weight:600;fill:#0b5cad}.p{fill:#fff;stroke:#8a4b08;stroke-width:2}.q{fill:#6b3a06}"
    ".g{stroke:#dcdcdc}.a{stroke:#555;fill:none}.f{fill:none;stroke:#0b5cad;stroke-width:1.5}"
    ".k{fill:none;stroke:#8a4b08;stroke-width:1.5;stroke-dasharray:5 4}.t{stroke:#999;fill:none}"
)


def draw_fronts(rows: Sequence[Mapping[str, Any]], peers: Collection[str]) -> str:
    """An SVG of ``rows`` with ``method``, ``packed_bytes`` and ``cosine``; those named in ``peers`` are circles."""
    points = [(row["packed_bytes"] / 1e6, max(1 - row["cosine"], 1e-5), str(row["method"])) for row in rows]
    lowest, highest = min(point[1] for point in points), max(point[1] for point in points)
    bottom, top = _floor(lowest), _ceiling(highest)
    end = 5 * math.ceil(max(point[0] for point in points) * 1.02 / 5)
    start = 5 * math.floor(min(point[0] for point in points) * 0.98 / 5)

    def at(size: float, loss: float) -> tuple[float, float]:
        down = (math.log10(top) - math.log10(loss)) / (math.log10(top) - math.log10(bottom))
        return LEFT + (RIGHT - LEFT) * (size - start) / (end - start), TOP + (BOTTOM - TOP) * down

    drawn = [*_grid(at, start, end, bottom, top)]
    for own, kind in ((False, "k"), (True, "f")):
        front = _front([point for point in points if (point[2] not in peers) == own])
        path = "L".join(f"{_n(x)} {_n(y)}" for x, y in (at(size, loss) for size, loss, _ in front))
        drawn.append(f'<path class="{kind}" d="M{path}"/>')
    placed = [(*at(size, loss), name) for size, loss, name in points]
    for x, y, name in placed:
        if name in peers:
            drawn.append(f'<circle class="p" cx="{_n(x)}" cy="{_n(y)}" r="5"/>')
        else:
            drawn.append(f'<rect class="o" x="{_n(x - 5)}" y="{_n(y - 5)}" width="10" height="10"/>')
    drawn.extend(_labels(placed, peers))
    title = "all-MiniLM-L6-v2: size in the package against the loss of quality"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{title}">\n<style>{STYLE}</style>\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6" fill="#fff" stroke="#bbb"/>\n'
        f'<text class="s h" x="{LEFT}" y="26">{title}</text>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _grid(at: Any, start: float, end: float, bottom: float, top: float) -> list[str]:
    drawn = []
    for exponent in range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**exponent
            if bottom * 0.999 <= value <= top * 1.001:
                y = _n(at(start, value)[1])
                drawn.append(f'<path class="g" d="M{LEFT} {y}H{RIGHT}"/>')
                drawn.append(f'<text class="s" x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{value:g}</text>')
    size = start
    while size <= end + 1e-9:
        x = _n(at(size, top)[0])
        drawn.append(f'<path class="g" d="M{x} {TOP}V{BOTTOM}"/>')
        drawn.append(f'<text class="s" x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{size:g}</text>')
        size += 5 if end - start > 12 else 1
    drawn.append(f'<path class="a" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    middle = (LEFT + RIGHT) / 2
    drawn.append(
        f'<text class="s" x="{middle}" y="{BOTTOM + 40}" text-anchor="middle">MB: graph and ESZ container</text>'
    )
    drawn.append(f'<text class="s" x="{LEFT}" y="{TOP - 8}">1 − mean cosine with the float model (↓ better)</text>')
    x = RIGHT - 190
    drawn.append(f'<rect class="o" x="{x}" y="{TOP - 18}" width="10" height="10"/>')
    drawn.append(f'<text class="s l" x="{x + 15}" y="{TOP - 8}">edgeslim</text>')
    drawn.append(f'<circle class="p" cx="{x + 95}" cy="{TOP - 13}" r="5"/>')
    drawn.append(f'<text class="s q" x="{x + 105}" y="{TOP - 8}">other tools</text>')
    return drawn


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points that no other one beats in both, by size."""
    kept = [a for a in points if not any(b[0] <= a[0] and b[1] <= a[1] and b[:2] != a[:2] for b in points)]
    return sorted(kept)


def _labels(placed: Sequence[tuple[float, float, str]], peers: Collection[str]) -> list[str]:
    """A name beside each point, moved until it lies on no other name and no point; a thin line leads back to it."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in placed]
    drawn = []
    for x, y, name in sorted(placed, key=lambda point: point[1]):
        label = name.removeprefix("edgeslim ")
        width = 7.0 * len(label)
        for step in range(60):
            shift = LINE / 2 * ((step + 3) // 4)
            left = x + 11 if step % 2 == 0 else x - 11 - width
            line = y + (shift if step % 4 < 2 else -shift)
            box = (left, line - 7, left + width, line + 6)
            inside = box[0] > LEFT + 2 and box[2] < WIDTH - 6 and box[1] > TOP and box[3] < BOTTOM
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        if abs(line - y) > LINE:
            near = left - 2 if left > x else left + width + 2
            drawn.append(f'<path class="t" d="M{_n(x)} {_n(y)}L{_n(near)} {_n(line)}"/>')
        kind = "q" if name in peers else "l"
        drawn.append(f'<text class="s {kind}" x="{_n(left)}" y="{_n(line + 4)}">{escape(label)}</text>')
    return drawn


def _floor(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten below ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= value)


def _ceiling(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
