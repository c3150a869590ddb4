"""From a parsed TOML table to a frozen dataclass, with errors that a newcomer understands.

A dataclass is the only description of its table: its fields are the allowed keys, its annotations the allowed types
(bool, int, float, str, ``Literal``, ``tuple[T, ...]``, ``X | None`` and nested dataclasses), its defaults the
defaults. So a stage, a profile and a project file need no second schema.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgeslim.errors import BadInputError, near_miss

__all__ = ["parse_fields", "read_toml"]

MAX_TOML_BYTES = 1 << 20

Parsed = TypeVar("Parsed")


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file of at most 1 MiB.

    Raises:
        BadInputError: the file is missing, too large, or not TOML.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TOML_BYTES:
            raise BadInputError(
                str(path), f"{size:,} bytes", expected=f"a TOML file of at most {MAX_TOML_BYTES:,} bytes"
            )
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable TOML file") from error
    except UnicodeDecodeError as error:
        raise BadInputError(str(path), f"byte {error.start} is not UTF-8", expected="a TOML file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(
            str(path), f"not valid TOML: {error}", expected="TOML: key = value, strings in quotes, [tables]"
        ) from error


def parse_fields(cls: type[Parsed], table: Mapping[str, Any], where: str) -> Parsed:
    """Makes a ``cls`` (a dataclass) from ``table``; ``where`` names the table in errors.

    A ``ValueError`` of the dataclass itself is passed on; it is worded as ``got, expected this``.

    Raises:
        BadInputError: an unknown key, a missing one, or a value that the dataclass refuses.
    """
    hints = get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cast(Any, cls)) if item.init}
    for key in table:
        if key not in fields:
            raise BadInputError(
                where,
                f'unknown key "{key}"',
                expected="one of " + ", ".join(sorted(fields)) if fields else "no keys",
                hint=near_miss(key, fields),
            )
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name in table:
            values[name] = _convert(table[name], hints[name], f"{where}: {name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise BadInputError(where, f'no key "{name}"', expected=_describe(hints[name]))
    try:
        return cls(**values)
    except ValueError as error:
        got, _, expected = str(error).partition(", expected ")
        raise BadInputError(where, got, expected=expected) from error


def _convert(value: object, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        if value is None and type(None) in get_args(kind):  # TOML has no null, JSON has
            return None
        if len(options) == 1:
            return _convert(value, options[0], where)
        for option in options:
            with suppress(BadInputError):
                return _convert(value, option, where)
    if origin is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
        raise BadInputError(
            where,
            repr(value),
            expected=_describe(kind),
            hint=near_miss(str(value), [str(option) for option in get_args(kind)]),
        )
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(item, get_args(kind)[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _convert(item, get_args(kind)[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return parse_fields(cast(type[Any], kind), value, where)
    if kind is Any or kind is object:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise BadInputError(where, f"{value!r} ({type(value).__name__})", expected=_describe(kind))


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(kind) if option is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(kind))
    if origin is tuple:
        return f"a list of {_describe(get_args(kind)[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names.get(kind, "a table")
