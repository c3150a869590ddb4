"""``edgeslim unpack CONTAINER``: the file, or files, that ``edgeslim pack`` coded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeslim.errors import UsageError

__all__ = ["unpack"]


def unpack(
    container: Annotated[str, typer.Argument(help="An .esz file.")],
    *,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="The file, or the folder of several (default: CONTAINER without .esz)."),
    ] = None,
) -> None:
    """Decode a container to the bytes that it was made from."""
    from edgeslim.packaging.container import unpack_file

    if out is None and not container.endswith(".esz"):
        raise UsageError("unpack", f"{container} without --out", expected="a name that ends in .esz, or --out")
    for path in unpack_file(Path(container), Path(out if out is not None else container.removesuffix(".esz"))):
        typer.echo(str(path))
