"""Kernels and schemas as the table of a release has them (``edgeslim/checks/kernel_table.py`` reads it)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OPEN_ENDED = 2**31 - 1
INTERNAL_DOMAINS = frozenset({"com.ms.internal.nhwc"})
MARKS = {"Optional": "?", "Variadic": "*"}


def type_text(text: str) -> str:
    """A type in the table's spelling: no blanks, bare tensors, ``map(int64,tensor(float))``."""
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"^map\((\w+),(\w+)\)$", r"map(\1,tensor(\2))", text)
    bare = re.fullmatch(r"tensor\((\w+)\)", text)
    return bare.group(1) if bare else text


class TypeSets:
    """Numbers sets of types, each distinct set once."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def number(self, types: Iterable[str]) -> int:
        """The number of a set."""
        return self.texts.setdefault(" ".join(sorted({type_text(item) for item in types})), len(self.texts))


def formal_text(parameters: Iterable[Sequence[Any]]) -> str:
    """Formal inputs or outputs as ``name:type`` with the marks of ``kernel_table``."""
    items = []
    for name, type_name, option, homogeneous in parameters:
        mark = MARKS.get(option, "") if homogeneous or option != "Variadic" else "~"
        known = f"tensor({type_text(type_name)})" if type_name.startswith("tensor(") else type_text(type_name)
        items.append(f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}:{known}{mark}")
    return " ".join(items)


def describe(dumps: Mapping[str, Mapping[str, Any]], sets: TypeSets) -> dict[str, dict[str, dict[str, Any]]]:
    """Operators by domain and name, without function bodies; ``dumps`` by machine, the first one's schemas count."""
    raw = next(iter(dumps.values()))
    schemas: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for item in raw["schemas"]:
        if item["domain"] not in INTERNAL_DOMAINS:
            schemas[item["domain"], item["name"]].append(item)
    kernels: dict[tuple[str, str], dict[str, tuple[list[Any], list[str]]]] = defaultdict(dict)
    for machine, listed in dumps.items():
        for item in listed["kernels"]:
            first, last = item["versions"]
            table = {key: sets.number(types) for key, types in sorted(item["types"].items())}
            row = [first, None if last == OPEN_ENDED else last, table]
            kernels[item["domain"], item["name"]].setdefault(json.dumps(row), (row, []))[1].append(machine)
    operators: dict[str, dict[str, dict[str, Any]]] = {}
    for (domain, name), versions in sorted(schemas.items()):
        same: dict[tuple[str, str], list[int]] = defaultdict(list)
        for item in sorted(versions, key=lambda item: item["since"]):
            if not item["deprecated"]:
                text = f"{formal_text(item['inputs'])} -> {formal_text(item['outputs'])}".strip()
                table = {key: sets.number(types) for key, types in sorted(item["types"].items())}
                same[text, json.dumps(table)].append(item["since"])
        entry: dict[str, Any] = {
            "schemas": [[numbers, text, json.loads(table)] for (text, table), numbers in same.items()]
        }
        deprecated = sorted(item["since"] for item in versions if item["deprecated"])
        if deprecated:
            entry["deprecated"] = deprecated
        rows = [
            row if len(set(machines)) == len(dumps) else [*row, machines[0]]
            for row, machines in kernels.get((domain, name), {}).values()
        ]
        if rows:
            entry["kernels"] = sorted(rows, key=lambda row: (row[0], row[1] or OPEN_ENDED, json.dumps(row[2:])))
        operators.setdefault(domain, {})[name] = entry
    return operators
