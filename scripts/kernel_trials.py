"""One-node models: every operator with every binding of its types, and the rows that those which open give."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernel_rows import TypeSets

if TYPE_CHECKING:
    import onnx

    from edgeslim.checks.kernel_table import KernelTable, Signature

MAX_BINDINGS = 1000
SHAPES: tuple[tuple[str | int, ...] | None, ...] = (None, ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d"), (1, 1, 1))
"""What each input's shape may be: unknown, of free dimensions, or fixed (some function bodies need that)."""


def type_proto(text: str) -> onnx.TypeProto:
    """A type as protobuf.

    Raises:
        KeyError: a type that ONNX has no name for.
    """
    import onnx

    proto = onnx.TypeProto()
    inner = text.partition("(")[2][:-1]
    if text.startswith("tensor("):
        proto.tensor_type.elem_type = {key.lower(): value for key, value in onnx.TensorProto.DataType.items()}[inner]
    elif text.startswith("seq("):
        proto.sequence_type.elem_type.CopyFrom(type_proto(inner))
    elif text.startswith("optional("):
        proto.optional_type.elem_type.CopyFrom(type_proto(inner))
    elif text.startswith("map("):
        key, _, value = inner.partition(",")
        proto.map_type.key_type = type_proto(f"tensor({key})").tensor_type.elem_type
        proto.map_type.value_type.CopyFrom(type_proto(value))
    else:
        raise KeyError(text)
    return proto


def one_node(
    item: Mapping[str, Any],
    signature: Signature,
    binding: Mapping[str, str],
    opsets: Mapping[str, int],
    *,
    shape: tuple[str | int, ...] | None,
    optional: bool,
) -> bytes:
    """A model of one node.

    Raises:
        KeyError: an attribute or type for which no value is made up.
    """
    import onnx

    sample = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
    made_up = {"INT": 1, "FLOAT": 1.0, "STRING": "x", "INTS": [1], "FLOATS": [1.0], "STRINGS": ["x"], "TENSOR": sample}
    attributes: dict[str, Any] = {name: made_up[kind] for name, kind in item["attributes"].items()}
    if item["name"] == "Constant":
        attributes["value"] = sample
    if item["name"] == "Cast" and item["since"] < 6:
        attributes["to"] = "FLOAT"
    inputs, values = [], []
    for number, parameter in enumerate(signature.inputs):
        if parameter.kind == "optional" and not optional:
            inputs.append("")
            continue
        proto = type_proto(binding.get(parameter.type, parameter.type))
        if shape is not None and proto.HasField("tensor_type"):
            for size in shape:
                dim = proto.tensor_type.shape.dim.add()
                if isinstance(size, int):
                    dim.dim_value = size
                else:
                    dim.dim_param = f"{size}{number}"
        inputs.append(f"i{number}")
        values.append(onnx.helper.make_value_info(inputs[-1], proto))
    while inputs and not inputs[-1]:
        inputs.pop()
    wanted = itertools.takewhile(lambda parameter: parameter.kind != "optional", signature.outputs)
    outputs = [f"o{number}" for number, _ in enumerate(wanted)]
    node = onnx.helper.make_node(item["name"], inputs, outputs, domain=item["domain"], **attributes)
    graph = onnx.helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=name) for name in outputs])
    imports = [onnx.helper.make_opsetid(domain, opset) for domain, opset in opsets.items()]
    proto_bytes: bytes = onnx.helper.make_model(graph, ir_version=8, opset_imports=imports).SerializeToString()
    return proto_bytes


@dataclass(frozen=True)
class Trial:
    """A binding of an operator's types that is tried, and what the kernels alone say about it.

    ``newest`` is the last opset that still means this schema; ``extra`` types the optional inputs.
    """

    item: Mapping[str, Any]
    signature: Signature
    binding: Mapping[str, str]
    extra: Mapping[str, str]
    expected: bool
    newest: int
    default_opset: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Domain, name and schema version."""
        return self.item["domain"], self.item["name"], self.item["since"]

    @property
    def has_optional(self) -> bool:
        """Whether the operator has optional inputs."""
        return any(parameter.kind == "optional" for parameter in self.signature.inputs)

    def models(self, opset: int, *, optional: bool) -> list[bytes]:
        """The node as a model, once for every shape.

        Raises:
            KeyError: an attribute or type for which no value is made up.
        """
        domain = self.item["domain"]
        opsets = {domain: opset} if domain == "" else {domain: opset, "": self.default_opset}
        whole = {**self.binding, **self.extra}
        return [one_node(self.item, self.signature, whole, opsets, shape=shape, optional=optional) for shape in SHAPES]


def trials(raw: Mapping[str, Any], table: KernelTable, skipped: Counter[str]) -> Iterator[Trial]:
    """Every operator with every binding of its required inputs."""
    for item in sorted(raw["schemas"], key=lambda item: (item["domain"], item["name"], item["since"])):
        domain, name, since = item["domain"], item["name"], item["since"]
        operator = table.operators.get((domain, name))
        signature = operator.signatures[since] if operator else None
        if operator is None or signature is None:
            continue
        needed = {parameter.type for parameter in signature.inputs if parameter.kind != "optional"}
        keys = sorted(key for key in needed if key in signature.allowed)
        newer = [version for version in operator.signatures if version > since]
        newest = min([*(version - 1 for version in newer), table.opsets[domain]])
        if newest < since:
            continue
        default = newest if domain == "" else table.opsets[""]
        for number, chosen in enumerate(itertools.product(*(sorted(signature.allowed[key]) for key in keys))):
            if number >= MAX_BINDINGS:
                skipped["bindings beyond the first 1,000 of an operator"] += 1
                continue
            binding = dict(zip(keys, chosen, strict=True))
            extra = {
                key: next((value for value in chosen if value in signature.allowed[key]), min(signature.allowed[key]))
                for key in {parameter.type for parameter in signature.inputs} - needed
                if key in signature.allowed
            }
            types = [
                "" if parameter.kind == "optional" else binding.get(parameter.type, parameter.type)
                for parameter in signature.inputs
            ]
            trial = Trial(
                item=item,
                signature=signature,
                binding=binding,
                extra=extra,
                expected=table.judge(domain, name, newest, types, [], default).supported is True,
                newest=newest,
                default_opset=default,
            )
            try:
                trial.models(newest, optional=True)
            except KeyError:
                skipped["attributes or types without a made-up value"] += 1
                continue
            yield trial


def verdict_of(answers: Iterable[str]) -> str:
    """``ok``, ``no kernel`` or ``no answer`` from what the runtime says to one node at several ranks."""
    answers = list(answers)
    if "ok" in answers:
        return "ok"
    refusals = ("Could not find an implementation", "Failed to find kernel")
    return "no kernel" if any(text in answer for answer in answers for text in refusals) else "no answer"


def merge(bindings: Sequence[tuple[Trial, bool]], sets: TypeSets) -> list[list[Any]]:
    """Rows that hold exactly ``bindings``: those that differ in one key only share a row."""
    rows: list[tuple[dict[str, frozenset[str]], bool]] = []
    for trial, optional in bindings:
        extra = trial.extra if optional else {}
        rows.append(({key: frozenset((value,)) for key, value in {**trial.binding, **extra}.items()}, optional))
    keys = sorted({key for row, _ in rows for key in row})
    for key in keys:
        grouped: dict[tuple[Any, bool], set[str]] = defaultdict(set)
        for row, optional in rows:
            rest = tuple(sorted((other, types) for other, types in row.items() if other != key))
            grouped[rest if key in row else (*rest, None), optional] |= row.get(key, frozenset())
        rows = [
            ({**dict(item for item in rest if item), **({} if None in rest else {key: frozenset(types)})}, optional)
            for (rest, optional), types in grouped.items()
        ]
    out = []
    for row, optional in rows:
        table = {key: sets.number(types) for key, types in sorted(row.items())}
        out.append([table] if optional else [table, "required inputs only"])
    return sorted(out, key=json.dumps)
