"""How the hidden states of a sentence-transformers model become one vector a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, cast

from edgeslim.errors import BadInputError

__all__ = ["Pooling", "pooling_from_folder"]

Pooling = Literal["mean", "cls", "none"]

MAX_JSON_BYTES = 1 << 20


def pooling_from_folder(folder: Path) -> tuple[Pooling, bool]:
    """How a sentence-transformers folder pools, and whether it scales vectors to length 1.

    A folder without ``modules.json`` says nothing of it: then it is the mean, scaled.

    Raises:
        BadInputError: a malformed file, or a pooling other than the mean or the first token.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", True
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInputError(str(path), f"a {type(modules).__name__}", expected="a list of modules")
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    normalize = "Normalize" in kinds
    if "Pooling" not in kinds:
        return "none", normalize
    inner = (folder / kinds["Pooling"] / "config.json").resolve()
    if not inner.is_relative_to(folder.resolve()):
        raise BadInputError(str(path), f'path "{kinds["Pooling"]}"', expected="a folder inside the model's")
    config = _read_json(inner)
    if not isinstance(config, dict):
        raise BadInputError(str(inner), f"a {type(config).__name__}", expected="a table of pooling modes")
    modes = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = modes or [str(config.get("pooling_mode", "mean"))]
    names: dict[str, Pooling] = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise BadInputError(
            str(inner),
            "pooling " + ", ".join(modes),
            expected="mean or cls",
            hint='task = "module:function" compares the model\'s outputs in your own way',
        )
    return names[modes[0]], normalize


def _read_json(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(
                str(path), f"{path.stat().st_size:,} bytes", expected=f"a JSON file of at most {MAX_JSON_BYTES:,} bytes"
            )
        return cast(object, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable JSON file") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(str(path), f"not valid JSON: {error}", expected="a JSON file") from error
