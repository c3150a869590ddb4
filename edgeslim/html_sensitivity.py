"""The page of ``edgeslim inspect --sensitivity``: a heat map of tensors by bits.

As ``report.html``: one page without scripts, network or pictures from outside, for light, dark and paper. Every cell
holds its figure; the colour only helps to find it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeslim.html_charts import text

if TYPE_CHECKING:
    from edgeslim.quantizing.sensitivity import Sensitivity, TensorSensitivity

__all__ = ["render_sensitivity"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STEPS = (0.005, 0.02, 0.05, 0.15, 0.4)
"""Errors from which a cell is one shade darker."""
KINDS = (("the weight", "weight_error"), ("the layer's output", "output_error"), ("the model's output", "model_error"))


def render_sensitivity(found: Sensitivity) -> str:
    """The page; without samples it shows the errors of the weights alone."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    title = f"Sensitivity of {found.model}"
    samples = f"{found.samples} calibration samples" if found.samples else "no samples: weights alone"
    kinds = KINDS if found.samples else KINDS[:1]
    bits = list(found.tensors[0].weight_error)
    head = '<tr><th rowspan="2">tensor</th>' + "".join(
        f'<th colspan="{len(bits)}" class="first">{kind}</th>' for kind, _ in kinds
    )
    if found.samples:
        head += '<th colspan="3" class="first">the layer\'s input</th>'
    head += "</tr>\n<tr>" + "".join(_bits_heading(bits) for _ in kinds)
    if found.samples:
        head += '<th class="n first">max / p99.9</th><th class="n">energy above</th><th class="n">int8 → smoothed</th>'
    rows = "".join(_row(tensor, [key for _, key in kinds], inputs=bool(found.samples)) for tensor in found.tensors)
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n',
            f'<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body class="broad">\n',
            f"<header>\n<h1>{text(title)}</h1>\n<p>{len(found.tensors)} tensors; {samples}.</p>\n</header>\n",
            '<p class="soft">Relative errors (root mean square, per cent) where one tensor is rounded to so many ',
            "bits, symmetric, a scale for each output channel, and everything else stays float.</p>\n",
            _legend(),
            f'<div class="scroll"><table class="heat"><thead>\n{head}</tr>\n</thead>\n',
            f"<tbody>\n{rows}</tbody></table></div>\n",
            "</body>\n</html>\n",
        ]
    )


def _bits_heading(bits: list[int]) -> str:
    return "".join(
        f'<th class="n{" first" if number == 0 else ""}">{width} bit</th>' for number, width in enumerate(bits)
    )


def _row(tensor: TensorSensitivity, keys: list[str], *, inputs: bool) -> str:
    shape = "×".join(map(str, tensor.shape))
    name = text(tensor.layer or tensor.name).replace(".", ".<wbr>").replace("_", "_<wbr>")
    cells = f"<td><code>{name}</code><small>{text(f'{tensor.operator} {shape}'.strip())}</small></td>"
    for key in keys:
        errors: Mapping[int, float] = getattr(tensor, key) or {}
        cells += "".join(_cell(value, first=number == 0) for number, value in enumerate(errors.values()))
    if inputs:
        facts = tensor.input
        if facts is None:
            cells += '<td class="n first">–</td><td class="n">–</td><td class="n">–</td>'
        else:
            smoothed = "–"
            if facts.int8_error is not None and facts.smoothed_error is not None:
                smoothed = f"{_percent(facts.int8_error)} → {_percent(facts.smoothed_error)}"
            cells += (
                f'<td class="n first">{facts.outlier_ratio:.1f}</td><td class="n">{facts.outlier_energy:.0%}</td>'
                f'<td class="n">{smoothed}</td>'
            )
    return f"<tr>{cells}</tr>\n"


def _cell(value: float, *, first: bool) -> str:
    shade = sum(value >= step for step in STEPS)
    return f'<td class="n h{shade}{" first" if first else ""}">{_percent(value)}</td>'


def _percent(value: float) -> str:
    """Two digits of the error in per cent."""
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    return f"{percent:.2f}" if percent < 0.995 else f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"


def _legend() -> str:
    bounds = ["below " + _percent(STEPS[0]), *(f"from {_percent(step)}" for step in STEPS)]
    cells = "".join(f'<span class="h{shade}">{bound} %</span>' for shade, bound in enumerate(bounds))
    return f'<p class="legend heatlegend">{cells}</p>\n'
