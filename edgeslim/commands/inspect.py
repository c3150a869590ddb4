"""``edgeslim inspect``: where the bytes of a model or package are, or how it stands fewer bits; as a table or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeslim.errors import UsageError
from edgeslim.report import format_value

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgeslim.anatomy import Anatomy, TensorFacts
    from edgeslim.quantizing.sensitivity import Sensitivity

__all__ = ["inspect_model", "print_anatomy", "print_sensitivity"]

ANATOMY_SCHEMA = 1
SENSITIVITY_SCHEMA = 1
SHOWN = 20
SHOWN_FILES = 8
BAR_CELLS = 12
NAME_CELLS = 32
LEAST_CELLS = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def inspect_model(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder or id, pkg://package/path, .safetensors, .onnx, .esz, a built .aar or .tar.gz."
        ),
    ],
    *,
    top: Annotated[int | None, typer.Option(min=0, help="Tensors shown, largest first; 0: all.", metavar="N")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show what 8 to 2 bits do to each tensor of a float model instead.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="With --sensitivity: samples, to measure outputs and inputs.", metavar="FILE"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --data: the model's task, if its files don't tell.")] = None,
    html: Annotated[
        str | None, typer.Option(help="With --sensitivity: a page with a heat map.", metavar="FILE")
    ] = None,
) -> None:
    """Show where the bytes are: by group and by tensor, with bits a weight, entropy and sparsity."""
    if sensitivity:
        _inspect_sensitivity(model, data=data, task=task, html=html, top=top, as_json=as_json)
        return
    for option, value in (("--data", data), ("--task", task), ("--html", html)):
        if value is not None:
            raise UsageError(option, "no --sensitivity beside it", expected=f"--sensitivity {option} {value}")
    from edgeslim.anatomy import dissect_model

    anatomy = dissect_model(model)
    if as_json:
        plain = {"schema": ANATOMY_SCHEMA, **asdict(anatomy)}
        plain["tensors"] = plain["tensors"][: top or None]
        typer.echo(json.dumps(plain, indent=2))
        return
    from rich.console import Console

    print_anatomy(anatomy, Console(soft_wrap=False), top=SHOWN if top is None else top)


def _inspect_sensitivity(
    model: str, *, data: str | None, task: str | None, html: str | None, top: int | None, as_json: bool
) -> None:
    from rich.console import Console

    from edgeslim.html_sensitivity import render_sensitivity
    from edgeslim.progress import TerminalProgress
    from edgeslim.replacing import replaced_when_whole
    from edgeslim.sensitivity_inputs import measure_sensitivity

    measured = measure_sensitivity(model, data=data, task=task, progress=TerminalProgress(Console(stderr=True)))
    if html is not None:
        with replaced_when_whole(Path(html)) as path:
            path.write_text(render_sensitivity(measured), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"schema": SENSITIVITY_SCHEMA, **asdict(measured)}, indent=2))
    else:
        print_sensitivity(measured, Console(soft_wrap=False), top=SHOWN if top is None else top)


def print_anatomy(anatomy: Anatomy, console: Console, *, top: int) -> None:
    """Prints totals, groups, and the ``top`` largest tensors (0: all)."""
    total = anatomy.total
    console.print(
        f"{anatomy.model}: {anatomy.kind}, {_bytes(anatomy.bytes)}, {total.parameters:,} parameters in "
        f"{total.tensors} tensors",
        style="bold",
        markup=False,
        highlight=False,
    )
    files = sorted(anatomy.files, key=lambda file: -file.bytes)
    listed = [f"{file.name} {_bytes(file.bytes)}" for file in files[:SHOWN_FILES]]
    listed += [f"{len(files) - SHOWN_FILES} more"] if len(files) > SHOWN_FILES else []
    console.print("files: " + ", ".join(listed), markup=False, highlight=False)
    console.print()
    console.print(_group_table(anatomy, console.width))
    console.print()
    shown = anatomy.tensors[: top or None]
    console.print(_tensor_table(shown, max(1, total.stored_bytes), console.width))
    left = len(anatomy.tensors) - len(shown)
    if left:
        rest = _bytes(sum(tensor.stored_bytes for tensor in anatomy.tensors[len(shown) :]))
        console.print(f"… and {left} more tensors with {rest}: --top 0 shows all", markup=False, highlight=False)


def print_sensitivity(found: Sensitivity, console: Console, *, top: int) -> None:
    """Prints the tensors that change the outputs most at four bits (without data: themselves), ``top`` of them."""
    rows = sorted(found.tensors, key=lambda row: -(row.model_error or row.output_error or row.weight_error)[4])
    shown = rows[: top or None]
    on = f"measured on {found.samples} calibration samples" if found.samples else "weights alone (--data FILE: outputs)"
    console.print(f"{found.model}: {len(rows)} weights, {on}", style="bold", markup=False, highlight=False)
    console.print("relative errors (RMS) with one tensor rounded, a scale a channel", markup=False, highlight=False)
    console.print()
    columns = {
        "tensor": [row.layer or row.name for row in shown],
        "shape": ["×".join(map(str, row.shape)) for row in shown],
    }
    kinds = (("weight", "weight_error"), ("layer", "output_error"), ("model", "model_error"))
    for kind, key in kinds if found.samples else kinds[:1]:
        for bits in rows[0].weight_error:
            columns[f"{kind} {bits} bit"] = [_error(getattr(row, key)[bits]) for row in shown]
    if found.samples:
        inputs = [row.input for row in shown]
        columns["max / p99.9"] = ["–" if item is None else f"{item.outlier_ratio:.1f}" for item in inputs]
        columns["energy"] = ["–" if item is None else f"{item.outlier_energy:.0%}" for item in inputs]
        columns["int8, smoothed"] = [
            "–"
            if item is None or item.int8_error is None or item.smoothed_error is None
            else f"{_error(item.int8_error)} → {_error(item.smoothed_error)}"
            for item in inputs
        ]
    spare = [name for name in columns if name.startswith("weight") and found.samples]
    spare += [f"{kind} {bits} bit" for bits in (6, 3, 8, 2) for kind in ("layer", "model", "weight")]
    console.print(_table(columns, console.width, (*spare, "energy", "shape")))
    if len(rows) > len(shown):
        console.print(f"… and {len(rows) - len(shown)} more tensors: --top 0 shows all", markup=False, highlight=False)


def _error(value: float) -> str:
    return f"{100 * value:.2g}%" if value < 0.1 else f"{100 * value:.0f}%"


def _group_table(anatomy: Anatomy, width: int) -> Table:
    rows = (*anatomy.groups, anatomy.total)
    total = max(1, anatomy.total.stored_bytes)
    columns = {
        "group": [row.group for row in rows],
        "tensors": [str(row.tensors) for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
        "stored": [_bytes(row.stored_bytes) for row in rows],
        "run time": [_bytes(row.runtime_bytes) for row in rows],
        "bits": [_number(row.bits) for row in rows],
        "zeros": [_percent(row.sparsity) for row in rows],
        "share of stored": [_bar(row.stored_bytes / total) for row in rows],
    }
    return _table(columns, width, ("run time", "tensors", "share of stored", "zeros"))


def _tensor_table(tensors: tuple[TensorFacts, ...], total: int, width: int) -> Table:
    columns = {
        "tensor": [_label(tensor) for tensor in tensors],
        "type": [f"{tensor.dtype} {'×'.join(map(str, tensor.shape)) or 'scalar'}" for tensor in tensors],
        "stored": [_bytes(tensor.stored_bytes) for tensor in tensors],
        "run time": [_bytes(tensor.runtime_bytes) for tensor in tensors],
        "bits": [_number(tensor.bits) for tensor in tensors],
        "entropy": [_number(tensor.entropy_bits) for tensor in tensors],
        "zeros": [_percent(tensor.sparsity) for tensor in tensors],
        "distinct": [_distinct(tensor) for tensor in tensors],
        "coded": [tensor.alphabet or "–" for tensor in tensors],
        "share of stored": [_bar(tensor.stored_bytes / total) for tensor in tensors],
    }
    if not any(tensor.alphabet for tensor in tensors):  # nothing is coded: all is stored as it runs
        del columns["run time"], columns["coded"]
    return _table(columns, width, ("distinct", "run time", "coded", "share of stored", "zeros", "entropy"))


def _table(columns: dict[str, list[str]], width: int, spare: tuple[str, ...]) -> Table:
    """A line a row: a narrow terminal gets no ``spare`` columns, then names without their middle, but whole figures."""
    from rich.table import Table
    from rich.text import Text

    first, *others = columns
    widths = {name: max(len(name), *map(len, cells), 0) + 2 for name, cells in columns.items()}
    wanted = min(NAME_CELLS, widths[first])
    for name in spare:
        if wanted + sum(widths[other] for other in others) > width and name in others:
            others.remove(name)
    room = max(LEAST_CELLS, width - sum(widths[other] for other in others))
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        left = name in ("type", "coded", "share of stored")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for label, *cells in zip(columns[first], *(columns[name] for name in others), strict=True):
        table.add_row(Text(_shorten(label, room)), *map(Text, cells))
    return table


def _label(tensor: TensorFacts) -> str:
    """The name, after its layer where it doesn't tell that by itself (``onnx::MatMul_679``)."""
    plain = "::" not in tensor.name and any(mark in tensor.name for mark in "./")
    return tensor.name if plain or not tensor.layer else f"{tensor.layer} ({tensor.name})"


def _shorten(name: str, room: int) -> str:
    """``name`` without control characters, and without its middle where it is longer than ``room``."""
    name = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    if len(name) <= room:
        return name
    head = (room - 1) // 3
    return f"{name[:head]}…{name[len(name) - (room - 1 - head) :]}"


def _bar(share: float) -> str:
    """A bar of eighths of a cell, and its per cent."""
    eighths = round(share * BAR_CELLS * 8)
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return f"{bar:<{BAR_CELLS}} {share:6.1%}"


def _bytes(value: int) -> str:
    return format_value(float(value), "bytes")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _distinct(tensor: TensorFacts) -> str:
    if tensor.distinct is not None:
        return f"{tensor.distinct:,}"
    return "> 65,536" if tensor.entropy_bits is not None else "–"
