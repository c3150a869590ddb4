"""Whether the target's ONNX Runtime has every operator that a model uses, in the opset and with the types it uses.

The graph is read without its weights; each node is judged against the table of the target's release
(``kernel_table``). A node whose types can't be told is never counted as supported: if no other node fails, the
finding is unjudged and names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from edgeslim.checks.kernel_table import KernelTable, load_table
from edgeslim.checks.value_types import TypedNode, walk_model
from edgeslim.core import Finding
from edgeslim.errors import BadInputError
from edgeslim.target import TargetProfile

__all__ = ["check_operators", "judge_nodes", "read_graph"]

MAX_MODEL_BYTES = 2**31 - 1
MAX_NAMED = 4


def check_operators(model_path: Path, target: TargetProfile) -> Iterator[Finding]:
    """Findings ``unsupported_operators`` (nodes), ``opset`` and ``ir_version`` for ``model_path`` on ``target``.

    Raises:
        BadInputError: the file is no ONNX model, or larger than protobuf allows.
    """
    model = read_graph(model_path)
    version = target.runtime.version
    table = load_table(version, target.machine.isa)
    where = f"{model_path.name} on ONNX Runtime {version}, CPUExecutionProvider"
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    newest = target.runtime.opset_max if table is None else min(target.runtime.opset_max, table.opsets[""])
    if table is None:
        note = f"no table of kernels for ONNX Runtime {version}; scripts/list_kernels.py makes one"
        yield Finding.at_most("operators", "unsupported_operators", None, "nodes", 0, where, note)
    else:
        wrong, unknown = judge_nodes(model, table)
        value = len(wrong) if wrong or not unknown else None
        yield Finding.at_most("operators", "unsupported_operators", value, "nodes", 0, where, _note(wrong, unknown))
    note = f"the graph needs opset {opset}, and the target knows those up to {newest}" if opset > newest else ""
    yield Finding.at_most("operators", "opset", opset, "version", newest, where, note)
    if table is not None:
        yield Finding.at_most("operators", "ir_version", model.ir_version, "version", table.ir_version, where)


def judge_nodes(model: onnx.ModelProto, table: KernelTable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is unsupported, and what can't be told: one line a node (or opset import)."""
    wrong: list[str] = []
    unknown: list[str] = []
    used = {node.domain for node in model.graph.node} | {""}
    for item in model.opset_import:
        newest = table.opsets.get("" if item.domain == "ai.onnx" else item.domain)
        if item.domain in used - {"", "ai.onnx"} and newest is not None and item.version > newest:
            wrong.append(f"opset {item.version} of {item.domain}: the runtime knows it up to {newest}")
    for typed in walk_model(model, table.signature):
        domain = "" if typed.node.domain == "ai.onnx" else typed.node.domain
        default_opset = typed.opsets.get("", 0)
        opset = typed.opsets.get(domain)
        if opset is None:
            wrong.append(f"{_name(typed)}: the model imports no opset of {domain or 'ai.onnx'}")
            continue
        verdict = table.judge(domain, typed.node.op_type, opset, typed.inputs, typed.outputs, default_opset)
        if verdict.supported is None:
            unknown.append(f"{_name(typed)}: {verdict.reason}")
        elif not verdict.supported:
            wrong.append(f"{_name(typed)}: {verdict.reason}")
    return tuple(wrong), tuple(unknown)


def read_graph(path: Path) -> onnx.ModelProto:
    """The model of an ONNX file; weights in external data stay where they are.

    Raises:
        BadInputError: the file is no ONNX model, or larger than protobuf allows.
    """
    try:
        size = path.stat().st_size
        model = onnx.load(path, load_external_data=False) if size <= MAX_MODEL_BYTES else None
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable ONNX file") from error
    except Exception as error:  # what the protobuf binding raises has no class that can be named here
        raise BadInputError(str(path), f"not an ONNX model: {error}", expected="an ONNX protobuf file") from error
    if model is None:
        raise BadInputError(
            str(path),
            f"{size:,} bytes",
            expected=f"an ONNX file of at most {MAX_MODEL_BYTES:,} bytes",
            hint="store the weights as external data",
        )
    if not model.opset_import or not model.HasField("graph"):
        raise BadInputError(str(path), "no graph or no opset", expected="an ONNX model")
    return model


def _name(typed: TypedNode) -> str:
    node = typed.node
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}{node.op_type} {typed.path}{node.name or node.output[0] if node.output else ''}".strip()


def _note(wrong: Sequence[str], unknown: Sequence[str]) -> str:
    parts = []
    for lines, what in ((wrong, ""), (unknown, "can't be told: ")):
        if lines:
            rest = len(lines) - MAX_NAMED
            shown = "; ".join(lines[:MAX_NAMED])
            parts.append(what + shown + (f"; and {rest} more ({_kinds(lines[MAX_NAMED:])})" if rest > 0 else ""))
    return "; ".join(parts)


def _kinds(lines: Sequence[str]) -> str:
    counts = Counter(line.split(maxsplit=1)[0].removesuffix(":") for line in lines)
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items()))
