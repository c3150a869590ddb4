"""Writes ``targets/runtimes/onnxruntime-<version>.json``: what one ONNX Runtime release runs on the CPU.

Usage::

    python scripts/list_kernels.py 1.32.0
    python scripts/list_kernels.py 1.29.0 --library libonnxruntime.so --library-of "Android AAR 1.29.0, arm64-v8a"
    python scripts/list_kernels.py 1.28.0 --stands-for 1.28.2
    python scripts/list_kernels.py 1.32.0 --arm64-python ./emulated-python

The wheel of exactly that version is downloaded and unpacked into a temporary folder, and a process that sees only it
is asked four things:

- its registered kernels of the CPU provider (``get_all_opkernel_def``) and its operator schemas;
- the newest IR version and opsets with which it opens a model;
- for every operator, version and binding of types (of the required inputs, at most 1,000 each): does it open a
  one-node model? Where a kernel fits, that tests the rules of ``edgeslim/checks/kernel_table.py``; where none does, it
  finds the operators that the runtime runs through a function body. A refusal for another reason (a made-up attribute
  or rank that the operator can't have) is no answer, and is counted apart.

``--arm64-python`` is a command that runs an aarch64 Python with NumPy, by emulation or on another machine that sees the
same files; it has to keep what it finds in PYTHONPATH. The aarch64 wheel's kernels are then listed, too, and rows that
only one of both builds has are marked so. Sessions are opened by the x86-64 build alone.

``--library`` looks for each operator's name in another build of the release, which can't be run here. A name that is
missing shows that the operator was left out of that build; a name that is there shows only that its name is.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from edgeslim.checks.kernel_table import KernelTable, Signature

ROOT = Path(__file__).resolve().parent.parent
OPEN_ENDED = 2**31 - 1
MAX_BINDINGS = 1000
SHAPES: tuple[tuple[str | int, ...] | None, ...] = (None, ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d"), (1, 1, 1))
"""What each input's shape may be: unknown, of free dimensions, or fixed (some function bodies need that)."""

INTERNAL_DOMAINS = frozenset({"com.ms.internal.nhwc"})
MARKS = {"Optional": "?", "Variadic": "*"}


# Inside the runtime under inspection: the standard library and onnxruntime only.


def dump(out: Path) -> None:
    """Writes kernels, schemas and accepted versions as JSON."""
    from onnxruntime.capi import _pybind_state as state

    kernels = [
        {
            "domain": item.domain,
            "name": item.op_name,
            "versions": list(item.version_range),
            "types": item.type_constraints,
        }
        for item in state.get_all_opkernel_def()
        if item.provider == "CPUExecutionProvider"
    ]

    def formal(parameter: Any) -> list[object]:
        option = str(parameter.option).rpartition(".")[2]
        return [parameter.name, parameter.typeStr, option, parameter.isHomogeneous]

    schemas = [
        {
            "domain": item.domain,
            "name": item.name,
            "since": item.since_version,
            "deprecated": item.deprecated,
            "inputs": [formal(parameter) for parameter in item.inputs],
            "outputs": [formal(parameter) for parameter in item.outputs],
            "types": {entry.type_param_str: sorted(entry.allowed_type_strs) for entry in item.type_constraints},
            "attributes": {
                name: str(attribute.type).rpartition(".")[2]
                for name, attribute in item.attributes.items()
                if attribute.required
            },
        }
        for item in state.get_all_operator_schema()
    ]
    out.write_text(json.dumps({"kernels": kernels, "schemas": schemas}))


def probe(models: Path, results: Path, start: int) -> None:
    """Opens the models from number ``start`` on and appends one line of result each: ``ok`` or the error."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.set_default_logger_severity(4)
    data = memoryview(models.read_bytes())
    at = 0
    with results.open("a") as out:
        for number in itertools.count():
            if at >= len(data):
                return
            (size,) = struct.unpack_from("<I", data, at)
            at += 4 + size
            if number < start:
                continue
            try:
                ort.InferenceSession(bytes(data[at - size : at]), options, providers=["CPUExecutionProvider"])
                answer = "ok"
            except Exception as error:  # each status has a class of its own
                answer = str(error)
            out.write(json.dumps(answer) + "\n")
            out.flush()


# Outside.


@dataclass(frozen=True)
class Runtime:
    """An unpacked wheel, and the interpreter that runs it."""

    python: tuple[str, ...]
    folder: Path
    work: Path

    def run(self, *arguments: str) -> int:
        """Runs this very script inside, and gives the exit status."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "ORT_DISABLE_TELEMETRY": "1"}
        command = [*self.python, str(Path(__file__).resolve()), "--inside", *arguments]
        return subprocess.run(command, env=environment, cwd=self.work, stderr=subprocess.DEVNULL).returncode

    def dump(self) -> dict[str, Any]:
        """Kernels and schemas."""
        out = self.work / "dump.json"
        if self.run("dump", str(out)) != 0:
            raise SystemExit(f"the runtime can't be loaded by {' '.join(self.python)}")
        loaded: dict[str, Any] = json.loads(out.read_text())
        return loaded

    def open_models(self, models: Sequence[bytes]) -> list[str]:
        """What the runtime says to each model: ``ok``, an error, or ``crash``."""
        source, results = self.work / "models.bin", self.work / "results.jsonl"
        source.write_bytes(b"".join(struct.pack("<I", len(model)) + model for model in models))
        results.write_text("")
        done = 0
        while done < len(models):
            status = self.run("probe", str(source), str(results), str(done))
            done = len(results.read_text().splitlines())
            if status != 0 and done < len(models):
                with results.open("a") as out:
                    out.write('"crash"\n')
                done += 1
        return [json.loads(line) for line in results.read_text().splitlines()]


def fetch_wheel(version: str, platform: str, folder: Path) -> Path:
    """Downloads the wheel of ``version``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), "-q"]
    if platform:
        command += ["--platform", platform, "--implementation", "cp"]
        command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    subprocess.run([*command, f"onnxruntime=={version}"], check=True)
    return next(folder.glob("onnxruntime-*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Lays the wheel's packages into ``folder``, as ``pip install --no-deps --target`` does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


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


def accepted(runtime: Runtime, domain: str) -> tuple[int, int]:
    """The newest IR version, and the newest opset of ``domain``, with which a model opens."""
    import onnx

    def model(ir_version: int, opset: int) -> bytes:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
        imports = {"": 13, domain: opset}
        opsets = [onnx.helper.make_opsetid(key, number) for key, number in imports.items()]
        proto: bytes = onnx.helper.make_model(graph, ir_version=ir_version, opset_imports=opsets).SerializeToString()
        return proto

    numbers = range(1, 64)
    irs = runtime.open_models([model(number, 13 if domain == "" else 1) for number in range(3, 32)])
    opsets = runtime.open_models([model(8, number) for number in numbers])
    ir = max(number for number, answer in zip(range(3, 32), irs, strict=True) if answer == "ok")
    return ir, max(number for number, answer in zip(numbers, opsets, strict=True) if answer == "ok")


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


Case = tuple[int, int, bool]
"""Number of a trial, opset, with optional inputs."""


def open_cases(runtime: Runtime, tried: Sequence[Trial], cases: Sequence[Case]) -> dict[Case, str]:
    """The verdict of each case."""
    models = [model for number, opset, optional in cases for model in tried[number].models(opset, optional=optional)]
    answers = runtime.open_models(models)
    step = len(SHAPES)
    return {case: verdict_of(answers[at * step : (at + 1) * step]) for at, case in enumerate(cases)}


def try_all(
    runtime: Runtime, raw: Mapping[str, Any], table: KernelTable, sets: TypeSets, operators: dict[str, Any]
) -> dict[str, Any]:
    """Opens all trials, adds the ``composed`` rows to ``operators``, and tells how kernels and sessions agree.

    Where no kernel fits, the first and last opset of the schema are tried; where they differ, those between, too.
    """
    skipped: Counter[str] = Counter()
    tried = list(trials(raw, table, skipped))
    cases: list[Case] = []
    for number, trial in enumerate(tried):
        ends = {trial.newest} if trial.expected else {trial.item["since"], trial.newest}
        variants = (False, True) if trial.has_optional and not trial.expected else (False,)
        cases += [(number, opset, optional) for opset in sorted(ends) for optional in variants]
    verdicts = open_cases(runtime, tried, cases)
    between: list[Case] = []
    for number, trial in enumerate(tried):
        ends = {verdicts.get((number, opset, False)) for opset in (trial.item["since"], trial.newest)} - {None}
        if len(ends) > 1 and "ok" in ends:
            variants = (False, True) if trial.has_optional else (False,)
            inner = range(trial.item["since"] + 1, trial.newest)
            between += [(number, opset, optional) for opset in inner for optional in variants]
    verdicts |= open_cases(runtime, tried, between)

    counts: Counter[str] = Counter()
    disagree: set[str] = set()
    answered: set[tuple[str, str, int]] = set()
    found: dict[tuple[str, str], dict[tuple[int, int], list[tuple[Trial, bool]]]] = defaultdict(dict)
    plain_of: dict[int, dict[int, str]] = defaultdict(dict)
    for (number, opset, with_optional), verdict in verdicts.items():
        if not with_optional:
            plain_of[number][opset] = verdict
    for number, trial in enumerate(tried):
        domain, name, since = trial.key
        plain = plain_of[number]
        opened = sorted(opset for opset, verdict in plain.items() if verdict == "ok")
        verdict = "opened" if opened else "no kernel" if "no kernel" in plain.values() else "no answer"
        counts[f"{'a' if trial.expected else 'no'} kernel fits: {verdict}"] += 1
        if verdict != "no answer":
            answered.add(trial.key)
        if trial.expected and verdict == "no kernel":
            disagree.add(f"{domain or 'ai.onnx'}:{name}-{since}")
        if opened and not trial.expected:
            optional = all(verdicts.get((number, opset, True), "ok") == "ok" for opset in opened)
            found[domain, name].setdefault((opened[0], opened[-1]), []).append((trial, optional))
    for (domain, name), ranges in sorted(found.items()):
        operators[domain][name]["composed"] = [
            [first, last, *rest] for (first, last), bindings in sorted(ranges.items()) for rest in merge(bindings, sets)
        ]
    return {
        "one_node_models": dict(sorted(counts.items())),
        "kernel_fits_but_refused": sorted(disagree),
        "not_tried": dict(sorted(skipped.items())),
        "operators_without_kernel_or_answer": note_untried(table, answered, operators),
    }


def note_untried(table: KernelTable, answered: set[tuple[str, str, int]], operators: dict[str, Any]) -> list[str]:
    """Marks schemas without a kernel of which no model opened, though a body may exist: nothing is known of them."""
    import onnx

    untried = []
    for (domain, name), operator in sorted(table.operators.items()):
        silent = []
        for since, signature in sorted(operator.signatures.items()):
            opened = any(first <= since <= last for first, last, *_ in operators[domain][name].get("composed", ()))
            if signature is None or opened or any(row.serves(since) for row in operator.kernels):
                continue
            try:
                schema = onnx.defs.get_schema(name, since, domain)
                has_body = schema.has_function or schema.has_context_dependent_function
            except onnx.defs.SchemaError:
                has_body = False
            if has_body or (domain, name, since) not in answered:
                silent.append(since)
        if silent:
            operators[domain][name]["untried"] = silent
            untried += [f"{domain or 'ai.onnx'}:{name}-{since}" for since in silent]
    return untried


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


def confirm(library: Path, of: str, operators: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Which names of operators with a kernel or function body stand in ``library`` as a C string."""
    data = library.read_bytes()
    names = {
        name
        for domain, entries in operators.items()
        for name, entry in entries.items()
        if domain != "com.microsoft.nchwc" and ("kernels" in entry or "composed" in entry)
    }
    missing = sorted(name for name in names if name.encode() + b"\0" not in data)
    endings = sorted(name for name in names if b"\0" + name.encode() + b"\0" not in data and name not in missing)
    return {
        "library": of or library.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "names_looked_for": len(names),
        "names_missing": missing,
        "names_only_as_the_end_of_a_longer_string": endings,
    }


def write(path: Path, header: Mapping[str, Any], sets: TypeSets, operators: Mapping[str, Any]) -> None:
    """Writes the table, one operator a line, so that a diff between releases can be read."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
    texts = ",\n".join(f"    {json.dumps(text)}" for text in sets.texts)
    lines.append(f'  "type_sets": [\n{texts}\n  ]')
    domains = []
    for domain, entries in sorted(operators.items()):
        rows = ",\n".join(
            f"      {json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}"
            for name, entry in sorted(entries.items())
        )
        domains.append(f"    {json.dumps(domain)}: {{\n{rows}\n    }}")
    body = ",\n".join(domains)
    lines.append(f'  "operators": {{\n{body}\n  }}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def about(arguments: argparse.Namespace) -> list[str]:
    """The header's words."""
    version, stands_for = arguments.version, arguments.stands_for
    lines = [
        "Written by scripts/list_kernels.py; not edited by hand.",
        f"Kernels of the CPU provider, operator schemas and accepted versions: as ONNX Runtime {version} itself tells "
        "them, loaded from the wheels named here.",
        "A kernel row that names a machine is only in that machine's build.",
        "composed: operators without a fitting kernel with which the x86_64 build opened a one-node model, by opset.",
    ]
    if not arguments.arm64_python:
        lines.append("Only the x86_64 build was listed; builds for other machines may have more float16 kernels.")
    if stands_for:
        lines.append(f"Stands for {stands_for}, of which there is no wheel: the nearest release with one is listed.")
    if arguments.library:
        lines.append(
            "confirmed_in: builds that can't be run where this was written. Their kernels were not listed; each "
            "operator's name was looked for in the library. A missing name shows that the build lacks the operator; a "
            "present one doesn't show which types its kernels take."
        )
    return lines


def make_table(arguments: argparse.Namespace) -> Path:
    """Does all of it, and gives the path of the table."""
    sys.path.insert(0, str(ROOT))
    from edgeslim.checks.kernel_table import FORMAT, parse_table

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        wheel = arguments.wheel or fetch_wheel(arguments.version, "", work)
        unpack(wheel, work / "runtime")
        runtime = Runtime(python=(sys.executable,), folder=work / "runtime", work=work)
        raw = runtime.dump()
        dumps, wheels = {"x86_64": raw}, {"x86_64": wheel}
        if arguments.arm64_python:
            (work / "arm64").mkdir()
            wheels["aarch64"] = fetch_wheel(arguments.version, "manylinux_2_28_aarch64", work / "arm64")
            unpack(wheels["aarch64"], work / "arm64" / "runtime")
            command = tuple(shlex.split(arguments.arm64_python))
            dumps["aarch64"] = Runtime(python=command, folder=work / "arm64" / "runtime", work=work).dump()
        sets = TypeSets()
        operators = describe(dumps, sets)
        limits = {domain: accepted(runtime, domain) for domain in ("", "ai.onnx.ml")}
        opsets = {domain: limits[domain][1] if domain in limits else 1 for domain in sorted(operators)}
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": arguments.stands_for or arguments.version,
            "about": about(arguments),
            "provider": "CPUExecutionProvider",
            "wheels": {
                machine: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for machine, path in wheels.items()
            },
            "ir_version": limits[""][0],
            "opsets": opsets,
        }
        table = parse_table({**header, "type_sets": list(sets.texts), "operators": operators}, isa="x86_64")
        header["sessions"] = try_all(runtime, raw, table, sets, operators)
        names = itertools.zip_longest(arguments.library, arguments.library_of, fillvalue="")
        header["confirmed_in"] = [confirm(path, of, operators) for path, of in names]
    out: Path = arguments.out / f"onnxruntime-{header['version']}.json"
    write(out, header, sets, operators)
    return out


def main(argv: Sequence[str]) -> None:
    """Parses the command line."""
    if argv[:1] == ["--inside"]:
        if argv[1] == "dump":
            dump(Path(argv[2]))
        else:
            probe(Path(argv[2]), Path(argv[3]), int(argv[4]))
        return
    parser = argparse.ArgumentParser(description="Writes the table of kernels of one ONNX Runtime release.")
    parser.add_argument("version", help="release to list, such as 1.32.0")
    parser.add_argument("--stands-for", default="", metavar="VERSION", help="write the table of this release instead")
    parser.add_argument("--wheel", type=Path, help="a wheel at hand, instead of downloading it")
    parser.add_argument("--arm64-python", default="", metavar="COMMAND", help="runs an aarch64 Python with NumPy")
    parser.add_argument("--library", type=Path, action="append", default=[], help="another build, to look for names in")
    parser.add_argument("--library-of", action="append", default=[], metavar="TEXT", help="what that library is")
    parser.add_argument("--out", type=Path, default=ROOT / "targets" / "runtimes", help="folder of the table")
    path = make_table(parser.parse_args(argv))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
