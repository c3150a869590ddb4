"""Writes docs/recipes.md from the stage classes: fields, types, defaults, and what the module says of its method.

python scripts/document_recipes.py            # writes
python scripts/document_recipes.py --check    # fails if the page is out of date
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import importlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgeslim.recipe import stage_names

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
HEAD = """\
# Recipes

<!-- Written by scripts/document_recipes.py from the stage classes. Edit those. -->

A recipe is a list of steps, in a project file, in a file of its own (`--recipe FILE`), or else in the target's profile:

```toml
[[steps]]
use = "quantize_int8"
method = "percentile"
percentile = 99.9
```

Another one, for weights of 4 and 8 bits within a number of bytes, as a file that any build can take:

```toml
# int4.toml: edgeslim build MODEL --target android-arm64 --data texts.txt --recipe int4.toml
[[steps]]
use = "quantize_int4"
max_bytes = 13_400_000
weight = "affine"
```

`use` names a stage; the other keys are its settings. An unknown key or a value of the wrong type is an error that names
the nearest known one.
"""


def describe_type(kind: Any) -> str:
    """A type as a reader of TOML knows it."""
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in get_args(kind) if option is not type(None))
    if origin is collections.abc.Mapping:
        return "table"
    if origin is tuple:
        return f"list of {describe_type(get_args(kind)[0])}"
    return {bool: "true or false", int: "whole number", float: "number", str: "string"}.get(kind, str(kind))


def describe_default(item: dataclasses.Field[Any]) -> str:
    """A default as TOML writes it."""
    if item.default is dataclasses.MISSING:
        return "required" if item.default_factory is dataclasses.MISSING else f"`{item.default_factory()!r}`"
    if isinstance(item.default, bool):
        return f"`{str(item.default).lower()}`"
    if isinstance(item.default, tuple):
        return f"`{list(item.default)!r}`"
    return "none" if item.default is None else f"`{item.default}`"


def describe_stage(name: str) -> str:
    """The section of one stage."""
    module = importlib.import_module(f"edgeslim.stages.{name}")
    (public,) = module.__all__
    stage = getattr(module, public)
    hints = get_type_hints(stage)
    level = {
        "torch": "the torch model, so before the export",
        "graph": "the exported graph, so a bare `.onnx` too",
        "either": "the torch model where a later step needs one, else the exported graph, so a bare `.onnx` too",
    }[stage.level]
    rows = [
        f"| `{item.name}` | {describe_type(hints[item.name])} | {describe_default(item)} |"
        for item in dataclasses.fields(stage)
    ]
    return "\n".join(
        [
            f"## `{name}`",
            "",
            f"Works on {level}.",
            "",
            inspect.cleandoc(module.__doc__ or ""),
            "",
            inspect.cleandoc(stage.__doc__ or ""),
            "",
            "| key | values | default |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Writes the page, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = "\n".join([HEAD, *(describe_stage(name) for name in stage_names())])
    if arguments.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/recipes.md is up to date" if same else "docs/recipes.md is out of date: run this without --check")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
