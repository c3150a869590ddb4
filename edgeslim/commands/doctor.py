"""``edgeslim doctor``: which optional tools this machine has, and what each would add."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

__all__ = ["doctor"]

SCHEMA = 1


def doctor(
    *,
    devices: Annotated[
        bool, typer.Option("--devices", help="Also list what adb has attached; this may start its server.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tools as JSON.")] = False,
) -> None:
    """Say which optional tools this machine has, and what each would add. Nothing here is needed to build."""
    import platform

    from edgeslim import __version__
    from edgeslim.toolbox import cpu_features, find_tools

    tools = find_tools(devices=devices)
    if as_json:
        host = {"system": platform.system(), "machine": platform.machine(), "cpu_features": list(cpu_features())}
        plain = {
            "schema": SCHEMA,
            "edgeslim": __version__,
            "python": platform.python_version(),
            "host": host,
            "tools": [asdict(tool) for tool in tools],
        }
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    width = max(len(tool.name) for tool in tools)
    versions = max(len(tool.version) for tool in tools)
    for tool in tools:
        facts = "; ".join(text for text in (tool.note, tool.path) if text)
        line = f"{tool.state:<8}  {tool.name:<{width}}  {tool.version:<{versions}}  {tool.adds}"
        typer.echo(line + (f" ({facts})" if facts else ""))
    found = sum(tool.state == "found" for tool in tools)
    typer.echo(f"{found} of {len(tools)} found; edgeslim {__version__}, Python {platform.python_version()}")
