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
import shlex
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_rows import TypeSets, describe
from kernel_trials import SHAPES, Trial, merge, trials, verdict_of
from runtime_wheel import Runtime, accepted, fetch_wheel, unpack

if TYPE_CHECKING:
    from edgeslim.checks.kernel_table import KernelTable

ROOT = Path(__file__).resolve().parent.parent

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
