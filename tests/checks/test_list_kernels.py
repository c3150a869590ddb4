from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeslim.checks.kernel_table import Row, parse_table
from edgeslim.session import runtime_version
from edgeslim.target import profile_folder

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """``list_kernels``, which takes its neighbours from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("list_kernels")


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> ModuleType:
    return importlib.import_module("kernel_rows")


@pytest.fixture(scope="module")
def host_dump(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ONNX Runtime that runs these tests tells of itself."""
    out = tmp_path_factory.mktemp("dump") / "dump.json"
    subprocess.run([sys.executable, str(SCRIPTS / "ask_runtime.py"), "dump", str(out)], check=True)
    loaded: dict[str, Any] = json.loads(out.read_text())
    return loaded


def test_the_committed_table_is_what_the_runtime_tells(script: ModuleType, host_dump: dict[str, Any]) -> None:
    """The wheel on this host is the very one that the table was made from: every kernel and schema has to agree."""
    path = profile_folder() / "runtimes" / f"onnxruntime-{runtime_version()}.json"
    machine = platform.machine().lower()
    if not path.is_file() or machine not in ("x86_64", "aarch64"):
        pytest.skip(f"no table for ONNX Runtime {runtime_version()} on {machine}")
    committed = parse_table(json.loads(path.read_text()), isa=machine)
    sets = script.TypeSets()
    operators = script.describe({machine: host_dump}, sets)
    header = {"format": 1, "version": "", "ir_version": 0, "opsets": {}}
    fresh = parse_table({**header, "type_sets": list(sets.texts), "operators": operators}, isa=machine)
    assert fresh.operators.keys() == committed.operators.keys()
    for key, operator in fresh.operators.items():
        assert operator.signatures == committed.operators[key].signatures, key
        assert order(operator.kernels) == order(committed.operators[key].kernels), key
    assert sum(len(operator.kernels) for operator in fresh.operators.values()) > 1_000


def order(rows: tuple[Row, ...]) -> list[Row]:
    return sorted(
        rows, key=lambda row: (row.first, row.last or 0, sorted((k, sorted(v)) for k, v in row.types.items()))
    )


def test_a_row_of_one_machine_is_marked(script: ModuleType) -> None:
    schema = {
        "domain": "",
        "name": "Relu",
        "since": 6,
        "deprecated": False,
        "inputs": [["X", "T", "Single", True]],
        "outputs": [["Y", "T", "Single", True]],
        "types": {"T": ["tensor(float)", "tensor(float16)"]},
        "attributes": {},
    }
    kernel = {"domain": "", "name": "Relu", "versions": [6, 2**31 - 1], "types": {"T": ["tensor(float)"]}}
    half = {**kernel, "types": {"T": ["tensor(float16)"]}}
    sets = script.TypeSets()
    operators = script.describe(
        {
            "x86_64": {"schemas": [schema], "kernels": [kernel]},
            "aarch64": {"schemas": [schema], "kernels": [kernel, half]},
        },
        sets,
    )
    assert list(sets.texts) == ["float", "float16", "float float16"]
    assert operators[""]["Relu"] == {
        "schemas": [[[6], "X:T -> Y:T", {"T": 2}]],
        "kernels": [[6, None, {"T": 0}], [6, None, {"T": 1}, "aarch64"]],
    }


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("tensor(float)", "float"),
        ("seq(tensor(int64))", "seq(tensor(int64))"),
        ("map(int64, float)", "map(int64,tensor(float))"),
        ("seq(map(string, float))", "seq(map(string,float))"),
        ("optional(seq(tensor(bool)))", "optional(seq(tensor(bool)))"),
    ],
)
def test_spelling_of_types(rows: ModuleType, text: str, spelled: str) -> None:
    assert rows.type_text(text) == spelled


def test_formal_parameters_carry_their_marks(rows: ModuleType) -> None:
    formal = [
        ["data set", "T", "Single", True],
        ["shape", "tensor(int64)", "Optional", True],
        ["rest", "T", "Variadic", True],
        ["all", "V", "Variadic", False],
    ]
    assert rows.formal_text(formal) == "data_set:T shape:tensor(int64)? rest:T* all:V~"


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        (["rank must be 4", "ok"], "ok"),
        (["rank must be 4", "9 : NOT_IMPLEMENTED : Could not find an implementation for Rfft(1)"], "no kernel"),
        (["Failed to find kernel for Swish(24)"], "no kernel"),
        (["crash", "rank must be 4"], "no answer"),
    ],
)
def test_what_the_runtime_says_becomes_one_verdict(script: ModuleType, answers: list[str], verdict: str) -> None:
    assert script.verdict_of(answers) == verdict


def trial(script: ModuleType, **binding: str) -> Any:
    return script.Trial(item={}, signature=None, binding=binding, extra={}, expected=False, newest=1, default_opset=1)


def test_merged_rows_hold_exactly_the_bindings_that_opened(script: ModuleType) -> None:
    opened = {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")}
    sets = script.TypeSets()
    rows = script.merge([(trial(script, T=t, U=u), True) for t, u in sorted(opened)], sets)
    texts = list(sets.texts)
    covered = [(t, u) for (row,) in rows for t in texts[row["T"]].split() for u in texts[row["U"]].split()]
    assert sorted(covered) == sorted(opened), "no binding twice, none more, none less"
    assert len(rows) == 2


def test_bindings_that_open_without_optional_inputs_only_say_so(script: ModuleType) -> None:
    sets = script.TypeSets()
    rows = script.merge([(trial(script, T="a"), True), (trial(script, T="b"), False)], sets)
    assert rows == [[{"T": 0}], [{"T": 1}, "required inputs only"]]


def test_names_are_looked_for_as_whole_c_strings(script: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"\0Add\0SkipRelu\0Multiply\0")
    entry = {"kernels": [[1, None, {}]]}
    operators = {
        "": {"Add": entry, "Relu": entry, "Mul": entry, "NoKernel": {}},
        "com.microsoft.nchwc": {"Conv": entry},
    }
    found = script.confirm(library, "a library", operators)
    assert found["names_looked_for"] == 3
    assert found["names_missing"] == ["Mul"]
    assert found["names_only_as_the_end_of_a_longer_string"] == ["Relu"]
    assert found["library"] == "a library"
    assert found["bytes"] == library.stat().st_size


def test_a_runtime_that_dies_on_a_model_goes_on_with_the_next(script: ModuleType, tmp_path: Path) -> None:
    class Fragile(script.Runtime):  # type: ignore[misc]
        def run(self, *arguments: str) -> int:
            _, _, results, start = arguments
            with Path(results).open("a") as out:
                for number in range(int(start), 4):
                    if number == 1:
                        return -6
                    out.write('"ok"\n')
            return 0

    runtime = Fragile(python=(), folder=tmp_path, work=tmp_path)
    assert runtime.open_models([b"a", b"b", b"c", b"d"]) == ["ok", "crash", "ok", "ok"]
