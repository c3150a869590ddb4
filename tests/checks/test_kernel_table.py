from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgeslim.checks.kernel_table import ABSENT, KernelTable, Row, load_table, parse_table
from edgeslim.errors import BadInputError
from edgeslim.target import list_targets, profile_folder

F, H, D, I32, I64 = (f"tensor({name})" for name in ("float", "float16", "double", "int32", "int64"))

SMALL: dict[str, Any] = {
    "format": 1,
    "version": "9.9.9",
    "ir_version": 10,
    "opsets": {"": 22},
    "type_sets": ["float", "double float float16", "int64", "int32 int64", "bfloat16 double"],
    "operators": {
        "": {
            "Old": {
                "schemas": [[[1, 7], "X:T -> Y:T", {"T": 1}]],
                "deprecated": [10],
                "kernels": [[1, None, {"T": 0}]],
            },
            "Conv": {
                "schemas": [[[1, 11, 22], "X:T W:T B:T? -> Y:T", {"T": 1}]],
                "kernels": [
                    [1, 10, {"T": 0}],
                    [11, 21, {"T": 0}],
                    [22, None, {"T": 0}],
                    [22, None, {"T": 4}, "aarch64"],
                ],
            },
            "Reshape": {
                "schemas": [[[5], "data:T shape:tensor(int64) -> reshaped:T", {"T": 1}]],
                "kernels": [[5, None, {"T": 1, "shape": 2}]],
            },
            "Gather": {
                "schemas": [[[1], "data:T indices:Tind -> output:T", {"T": 1, "Tind": 3}]],
                "kernels": [[1, None, {"T": 0, "Tind": 3}]],
            },
            "Mish": {
                "schemas": [[[18], "X:T limit:T? -> Y:T", {"T": 1}]],
                "composed": [[18, 20, {"T": 0}, "required inputs only"], [21, 22, {"T": 0}]],
            },
            "Map": {"schemas": [[[17], "S:T -> Y:T", {"T": 1}]], "untried": [17]},
            "Gone": {"schemas": [[[1], "X:T -> Y:T", {"T": 1}]]},
            "Concat": {"schemas": [[[1], "inputs:T* -> output:T", {"T": 1}]], "kernels": [[1, None, {"T": 1}]]},
            "Loop": {"schemas": [[[1], "M:tensor(int64)? v:V~ -> o:V~", {"V": 1}]], "kernels": [[1, None, {"V": 1}]]},
        }
    },
}


@pytest.fixture
def table() -> KernelTable:
    return parse_table(SMALL, isa="x86_64")


def judge(table: KernelTable, name: str, opset: int, inputs: list[str | None], outputs: list[str | None]) -> Any:
    return table.judge("", name, opset, inputs, outputs, opset)


def test_an_open_row_serves_its_own_version_only_and_a_closed_one_all_between() -> None:
    assert Row(first=11, last=None, types={}).serves(11)
    assert not Row(first=11, last=None, types={}).serves(12)
    closed = Row(first=11, last=21, types={})
    assert [closed.serves(version) for version in (10, 11, 15, 21, 22)] == [False, True, True, True, False]


def test_float32_finds_its_kernel_in_every_version(table: KernelTable) -> None:
    for opset in (1, 10, 11, 21, 22):
        verdict = judge(table, "Conv", opset, [F, F, F], [F])
        assert (verdict.supported, verdict.reason) == (True, "kernel")
        assert judge(table, "Conv", opset, [F, F], [F]).supported
        assert judge(table, "Conv", opset, [F, F, ABSENT], [F]).supported


@pytest.mark.parametrize(
    ("name", "opset", "inputs", "outputs", "reason"),
    [
        ("Fold", 13, [F], [F], "doesn't know"),
        ("Old", 10, [F], [F], "deprecated since opset 10"),
        ("Old", 7, [F], [F], "no CPU kernel for its version 7"),
        ("Reshape", 4, [F, I64], [F], "new in opset 5"),
        ("Conv", 11, [D, D], [D], "no kernel takes T = tensor(double) (kernels: T in {float})"),
        ("Conv", 11, [I32, I32], [I32], "tensor(int32) is no type that the operator defines for T"),
        ("Conv", 11, [F, D], [F], "bound to different types"),
        ("Conv", 11, [F, F, F, F], [F], "it has 4 inputs, the operator takes 3"),
        ("Reshape", 5, [F, I32], [F], "tensor(int32) is no type"),
        ("Gather", 1, [F, F], [F], "no type that the operator defines for Tind"),
        ("Gather", 1, [F, I64], [D], "bound to different types"),
        ("Gone", 1, [F], [F], "no CPU kernel for it"),
        ("Mish", 18, [D], [D], "no CPU kernel"),
        ("Conv", 5, [H, H], [H], "no kernel takes T = tensor(float16)"),
    ],
)
def test_refused(
    table: KernelTable, name: str, opset: int, inputs: list[str | None], outputs: list[str | None], reason: str
) -> None:
    verdict = judge(table, name, opset, inputs, outputs)
    assert verdict.supported is False
    assert reason in verdict.reason


def test_float16_without_a_kernel_runs_between_casts_from_opset_6_on(table: KernelTable) -> None:
    assert judge(table, "Conv", 11, [H, H], [H]).reason == "float32 kernel between inserted casts"
    assert judge(table, "Concat", 11, [H, H], [H]).reason == "kernel"


def test_an_unknown_type_is_told_unless_the_kernel_takes_all_that_the_schema_allows(table: KernelTable) -> None:
    verdict = judge(table, "Gather", 1, [None, I64], [None])
    assert verdict.supported is None
    assert verdict.reason == "the type bound to T isn't known"
    assert judge(table, "Gather", 1, [F, None], [F]).supported is True
    assert judge(table, "Gather", 1, [D, None], [D]).supported is False


def test_function_bodies_hold_for_the_opsets_and_inputs_that_were_tried(table: KernelTable) -> None:
    assert judge(table, "Mish", 18, [F], [F]).reason == "function body"
    assert judge(table, "Mish", 19, [F, F], [F]).supported is None
    assert judge(table, "Mish", 21, [F, F], [F]).supported is True
    assert judge(table, "Map", 17, [F], [F]).supported is None


def test_variadic_inputs_share_a_type_and_mixed_ones_need_not(table: KernelTable) -> None:
    assert judge(table, "Concat", 1, [F, F, F, F], [F]).supported is True
    assert judge(table, "Concat", 1, [F, D], [F]).supported is False
    assert judge(table, "Loop", 1, [ABSENT, F, D, H], [F, D, H]).supported is True


def test_a_row_of_one_machine_counts_on_that_machine() -> None:
    wide = ["tensor(double)"] * 2
    for isa, supported in (("arm64-v8a", True), ("aarch64", True), ("x86_64", False), ("armeabi-v7a", False)):
        table = parse_table(SMALL, isa=isa)
        assert judge(table, "Conv", 22, wide, ["tensor(double)"]).supported is supported


def test_a_missing_table_is_none_and_a_broken_one_an_error(tmp_path: Path) -> None:
    assert load_table("0.0.1", "x86_64", tmp_path) is None
    path = tmp_path / "onnxruntime-0.0.1.json"
    broken: list[object] = [{**SMALL, "format": 2}, {**SMALL, "type_sets": []}, [], {"format": 1}]
    for content in (*map(json.dumps, broken), "{"):
        path.write_text(content)
        with pytest.raises(BadInputError, match="not a table of kernels"):
            load_table("0.0.1", "x86_64", tmp_path)
    path.write_text(json.dumps(SMALL))
    loaded = load_table("0.0.1", "x86_64", tmp_path)
    assert loaded is not None
    assert loaded.version == "9.9.9"


def test_every_target_has_a_table_of_its_runtime() -> None:
    for target in list_targets():
        table = load_table(target.runtime.version, target.machine.isa)
        assert table is not None, target.name
        assert table.version == target.runtime.version
        assert target.runtime.opset_max <= table.opsets[""]


@pytest.mark.parametrize("path", sorted((profile_folder() / "runtimes").glob("*.json")), ids=lambda path: path.stem)
def test_a_generated_table_is_small_and_says_where_it_comes_from(path: Path) -> None:
    assert path.stat().st_size <= 300_000
    data = json.loads(path.read_text())
    assert path.stem == f"onnxruntime-{data['version']}"
    assert data["about"][0].startswith("Written by scripts/list_kernels.py")
    for wheel in data["wheels"].values():
        assert re.fullmatch(r"onnxruntime-[\w.]+-cp\d+-cp\d+-manylinux\w+[\w.]*\.whl", wheel["file"])
        assert re.fullmatch(r"[0-9a-f]{64}", wheel["sha256"])
    for library in data["confirmed_in"]:
        assert library["names_missing"] == []
        assert library["names_looked_for"] > 250
    table = parse_table(data, isa="arm64-v8a")
    assert table.judge("", "MatMul", 17, [F, F], [F], 17).supported
    quantized = ["tensor(uint8)", "tensor(int8)", F, F]
    assert table.judge("com.microsoft", "MatMulIntegerToFloat", 1, quantized, [F], 17).supported
    assert not table.judge("", "Conv", 17, [I32, I32], [I32], 17).supported
    assert not table.judge(
        "com.microsoft", "PackedAttention", 1, [F, F, F, "tensor(int32)", "tensor(int32)"], [F], 17
    ).supported
