"""``edgeslim init [MODEL]``: looks at a model and writes a first project file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init"]


def init(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable. "
            "Without it, the one model in this folder."
        ),
    ] = None,
    *,
    target: Annotated[str | None, typer.Option(help="A profile's name (`edgeslim targets`) or a .toml file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an edgeslim.toml that is there.")] = False,
) -> None:
    """Look at a model and write a commented edgeslim.toml into this folder."""
    from edgeslim.project import PROJECT_FILE
    from edgeslim.scaffold import check_free, make_scaffold, write_scaffold

    path = Path(PROJECT_FILE)
    check_free(path, force=force)
    scaffold = make_scaffold(model, target, Path())
    write_scaffold(scaffold, path, force=force)
    typer.echo(f"wrote {path}: {scaffold.summary}")
    for note in scaffold.notes:
        typer.echo(f"note: {note}")
    typer.echo("next: edgeslim build")
