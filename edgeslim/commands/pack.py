"""``edgeslim pack FILE``: any file as a container, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["pack"]


def pack(
    file: Annotated[
        str, typer.Argument(help="A .safetensors, .onnx (with its external data), .ort, or any other file.")
    ],
    *,
    out: Annotated[str | None, typer.Option("-o", "--out", help="The container (default: FILE.esz).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """Code a file losslessly; `edgeslim unpack` gives back the same bytes."""
    from edgeslim.packaging.container import pack_file
    from edgeslim.report import format_value

    target = Path(out) if out is not None else Path(f"{file}.esz")
    info = pack_file(Path(file), target)
    if as_json:
        plain = {"container": str(target), "bytes": info.decoded_bytes, "packed_bytes": info.file_bytes}
        typer.echo(json.dumps(plain | {"segments": len(info.segments)}, indent=2))
        return
    before, after = (format_value(float(size), "bytes") for size in (info.decoded_bytes, info.file_bytes))
    share = 100 * info.file_bytes / info.decoded_bytes if info.decoded_bytes else 100
    typer.echo(f"{target}: {before} -> {after} ({share:.1f} %), {len(info.segments)} segments")
