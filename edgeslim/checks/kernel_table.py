"""The kernels of one ONNX Runtime release, and whether a node would find one.

A table, ``targets/runtimes/onnxruntime-<version>.json``, is written by ``scripts/list_kernels.py`` from what the
runtime itself tells. ``KernelTable.judge`` repeats the runtime's own choice for a node on the CPU provider:

1. The operator's schema version is the newest at most the model's opset. A kernel row ``[first, last]`` serves it if
   ``first`` equals it, or if ``last`` is set and it lies between the two: an open row never serves a newer schema.
2. Every type parameter that a kernel row restricts has to be bound to one of the row's types. A key that is no type
   parameter is the name of an input or output.
3. A node with float16 inputs that has no kernel of its own runs on the float32 kernel, between inserted casts.
4. An operator without a fitting kernel may have a function body that the runtime puts in its place. Such rows,
   ``composed``, hold the opsets and bindings with which the runtime opened a one-node model, attributes at defaults.

Types are written as ONNX writes them: ``tensor(float)``, ``seq(tensor(int64))``. In the file a bare name, ``float``,
is a tensor.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgeslim.errors import BadInputError
from edgeslim.target import profile_folder

__all__ = [
    "ABSENT",
    "KernelTable",
    "Kind",
    "Operator",
    "Parameter",
    "Row",
    "Signature",
    "Verdict",
    "bind",
    "load_table",
    "parse_table",
]

FORMAT = 1
MAX_TABLE_BYTES = 8 << 20
CAST_OPSET = 6
"""From this opset on, the casts that the runtime inserts round float16 nodes are valid."""

ABSENT = ""
"""The type of an optional input or output that a node leaves out. A type that isn't known is ``None``."""

Kind = Literal["single", "optional", "variadic", "mixed"]
"""``mixed``: variadic, and each value may have another type."""

REQUIRED_ONLY = "required inputs only"
_MACHINES = {"x86_64": ("x86_64", "x86-64", "amd64"), "aarch64": ("aarch64", "arm64", "arm64-v8a")}
_MARKS: dict[str, Kind] = {"?": "optional", "*": "variadic", "~": "mixed"}

Types = Sequence[str | None]
Bound = Mapping[str, tuple[str | None, ...]]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A formal input or output: ``type`` is a type parameter of the operator (``T``) or a type."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One version of an operator's schema; ``allowed`` are the types that each type parameter may take."""

    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    allowed: Mapping[str, frozenset[str]]

    @cached_property
    def type_names(self) -> frozenset[str]:
        """What stands as a type in the formal inputs and outputs."""
        return frozenset(parameter.type for parameter in (*self.inputs, *self.outputs))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kernel, or a tried function body, and the types that it takes.

    ``first`` to ``last`` are schema versions of a kernel, and opsets of a model for a function body. ``optional`` is
    False for a function body that was opened without optional inputs only.
    """

    first: int
    last: int | None
    types: Mapping[str, frozenset[str]]
    optional: bool = True

    def serves(self, since: int) -> bool:
        """Whether a schema of version ``since`` finds this row."""
        return self.first == since or (self.last is not None and self.first <= since <= self.last)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator: its schemas by version (``None``: deprecated from there on), kernels and function bodies.

    ``untried`` are the versions without a kernel for which no one-node model was made that the runtime could judge.
    """

    signatures: Mapping[int, Signature | None]
    kernels: tuple[Row, ...]
    composed: tuple[Row, ...]
    untried: frozenset[int] = frozenset()

    def since(self, opset: int) -> int | None:
        """The schema version that a model of ``opset`` means."""
        return max((version for version in self.signatures if version <= opset), default=None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``supported`` is None if it hangs on a type that isn't known; ``reason`` says how, or what is missing."""

    supported: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class KernelTable:
    """What one release runs on the CPU. ``opsets`` and ``ir_version`` are the newest that it accepts."""

    version: str
    ir_version: int
    opsets: Mapping[str, int]
    operators: Mapping[tuple[str, str], Operator]

    def signature(self, domain: str, name: str, opset: int) -> Signature | None:
        """The schema of an operator at ``opset``, or None."""
        operator = self.operators.get((domain, name))
        since = operator.since(opset) if operator else None
        return operator.signatures[since] if operator and since is not None else None

    def judge(self, domain: str, name: str, opset: int, inputs: Types, outputs: Types, default_opset: int) -> Verdict:
        """Whether a node runs; ``opset`` is the import of its own domain, ``default_opset`` that of ``ai.onnx``."""
        operator = self.operators.get((domain, name))
        if operator is None:
            return _no("the runtime doesn't know this operator")
        since = operator.since(opset)
        signature = operator.signatures[since] if since is not None else None
        if since is None:
            return _no(f"it is new in opset {min(operator.signatures)}, the model has {opset}")
        if signature is None:
            return _no(f"it is deprecated since opset {since}")
        bound = bind(signature, inputs, outputs)
        if isinstance(bound, str):
            return _no(bound)
        wrong = _against_schema(signature, bound)
        if wrong:
            return _no(wrong)
        kernels = [row for row in operator.kernels if row.serves(since)]
        answers = [_fits(row, signature, bound) for row in kernels]
        if True in answers:
            return Verdict(supported=True, reason="kernel")
        widened = {key: tuple(_widen(item) for item in types) for key, types in bound.items()}
        if "tensor(float16)" in inputs and default_opset >= CAST_OPSET:
            cast = [_fits(row, signature, widened) for row in kernels]
            if True in cast:
                return Verdict(supported=True, reason="float32 kernel between inserted casts")
            answers += cast
        composed = [row for row in operator.composed if row.serves(opset)]
        bodies = [_fits(row, signature, bound) for row in composed]
        if True in bodies:
            given = {
                parameter.kind for parameter, item in zip(signature.inputs, inputs, strict=False) if item != ABSENT
            }
            if "optional" in given and not composed[bodies.index(True)].optional:
                return Verdict(supported=None, reason="its function body was not tried with optional inputs")
            return Verdict(supported=True, reason="function body")
        if None in (*answers, *bodies):
            unknown = sorted({key for key, types in bound.items() if None in types and key in signature.type_names})
            return Verdict(supported=None, reason=f"the type bound to {', '.join(unknown)} isn't known")
        if since in operator.untried:
            return Verdict(
                supported=None, reason="it has no CPU kernel, and whether it has a function body was not tried"
            )
        return _no(_describe(since, kernels, signature, bound, has_any=bool(operator.kernels or operator.composed)))


def bind(signature: Signature, inputs: Types, outputs: Types) -> Bound | str:
    """The actual types under each type parameter and each formal name, or what is wrong with their number."""
    bound: dict[str, list[str | None]] = defaultdict(list)
    for side, formal, actual in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
        for index, type_name in enumerate(actual):
            if index >= len(formal) and not (formal and formal[-1].kind in ("variadic", "mixed")):
                if type_name == ABSENT:
                    continue
                return f"it has {len(actual)} {side}s, the operator takes {len(formal)}"
            parameter = formal[min(index, len(formal) - 1)]
            if type_name == ABSENT:
                continue
            bound[parameter.type].append(type_name)
            if parameter.name not in signature.type_names:
                bound[parameter.name].append(type_name)
    return {key: tuple(types) for key, types in bound.items()}


def _against_schema(signature: Signature, bound: Bound) -> str:
    mixed = {parameter.type for parameter in (*signature.inputs, *signature.outputs) if parameter.kind == "mixed"}
    for key in sorted(signature.type_names & bound.keys()):
        known = {item for item in bound[key] if item is not None}
        allowed = signature.allowed.get(key, frozenset((key,)))
        for item in sorted(known - allowed):
            return f"{item} is no type that the operator defines for {key}"
        if len(known) > 1 and key not in mixed:
            return f"{key} is bound to different types: {', '.join(sorted(known))}"
    return ""


def _fits(row: Row, signature: Signature, bound: Bound) -> bool | None:
    """True, False, or None where it hangs on an unknown type."""
    answer: bool | None = True
    for key, types in row.types.items():
        for item in bound.get(key, ()):
            if item is not None:
                if item not in types:
                    return False
            elif not signature.allowed.get(key, frozenset((None,))) <= types:
                answer = None
    return answer


def _widen(type_name: str | None) -> str | None:
    return "tensor(float)" if type_name == "tensor(float16)" else type_name


def _no(reason: str) -> Verdict:
    return Verdict(supported=False, reason=reason)


def _describe(since: int, kernels: Sequence[Row], signature: Signature, bound: Bound, *, has_any: bool) -> str:
    if not has_any:
        return "the runtime has no CPU kernel for it"
    if not kernels:
        return f"the runtime has no CPU kernel for its version {since}"
    keys = sorted({key for row in kernels for key in row.types if key in bound})
    got = ", ".join(f"{key} = {'/'.join(sorted({item or 'unknown' for item in bound[key]}))}" for key in keys)
    want = "; ".join(
        sorted({", ".join(f"{key} in {_short(row.types[key])}" for key in keys if key in row.types) for row in kernels})
    )
    return f"no kernel takes {got} (kernels: {want})" if signature.inputs else f"no kernel gives {got}"


def _short(types: frozenset[str]) -> str:
    names = sorted(
        item.removeprefix("tensor(").removesuffix(")") if item.startswith("tensor(") else item for item in types
    )
    return "{" + ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") + "}"


def load_table(version: str, isa: str, folder: Path | None = None) -> KernelTable | None:
    """The table of ONNX Runtime ``version`` on machines of ``isa``, or None if there is none.

    Raises:
        BadInputError: the file is not a table.
    """
    path = (folder or profile_folder() / "runtimes") / f"onnxruntime-{version}.json"
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise BadInputError(str(path), f"{size:,} bytes", expected=f"a table of at most {MAX_TABLE_BYTES:,} bytes")
    try:
        return parse_table(json.loads(path.read_text(encoding="utf-8")), isa=isa)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInputError(
            str(path),
            f"not a table of kernels: {error!r}",
            expected=f"format {FORMAT}",
            hint="scripts/list_kernels.py writes it",
        ) from error


def parse_table(data: Mapping[str, Any], *, isa: str) -> KernelTable:
    """A table from the parsed JSON of its file, for the machine that ``isa`` names.

    A row that is marked for one machine counts for that one only; on a machine that wasn't listed none of them does.
    """
    others = set(_MACHINES) - {name for name, isas in _MACHINES.items() if isa in isas}
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}")
    sets = [frozenset(_full(item) for item in text.split()) for text in data["type_sets"]]

    def types(table: Mapping[str, int]) -> dict[str, frozenset[str]]:
        return {key: sets[index] for key, index in table.items()}

    def rows(items: Sequence[Any]) -> tuple[Row, ...]:
        return tuple(
            Row(first=first, last=last, types=types(table), optional=REQUIRED_ONLY not in remarks)
            for first, last, table, *remarks in items
            if not others.intersection(remarks)
        )

    operators: dict[tuple[str, str], Operator] = {}
    for domain, entries in data["operators"].items():
        for name, entry in entries.items():
            signatures: dict[int, Signature | None] = dict.fromkeys(entry.get("deprecated", ()))
            for versions, text, table in entry["schemas"]:
                inputs, _, outputs = text.partition("->")
                signature = Signature(inputs=_parse(inputs), outputs=_parse(outputs), allowed=types(table))
                signatures.update(dict.fromkeys(versions, signature))
            operators[domain, name] = Operator(
                signatures=signatures,
                kernels=rows(entry.get("kernels", ())),
                composed=rows(entry.get("composed", ())),
                untried=frozenset(entry.get("untried", ())),
            )
    return KernelTable(
        version=data["version"], ir_version=data["ir_version"], opsets=dict(data["opsets"]), operators=operators
    )


def _full(text: str) -> str:
    return text if "(" in text else f"tensor({text})"


def _parse(text: str) -> tuple[Parameter, ...]:
    parameters = []
    for item in text.split():
        name, _, type_name = item.partition(":")
        kind = _MARKS.get(type_name[-1], "single")
        parameters.append(Parameter(name=name, type=type_name if kind == "single" else type_name[:-1], kind=kind))
    return tuple(parameters)
