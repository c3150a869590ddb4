from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    by_metric,
    make_model,
    make_target,
    node,
)

from edgeslim.checks.kernel_table import KernelTable
from edgeslim.checks.operators import check_operators, judge_nodes, read_graph
from edgeslim.errors import BadInputError
from edgeslim.session import runtime_version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

STRING, BFLOAT16, INT16, UINT16, UINT4, INT4 = (
    getattr(TensorProto, name) for name in ("STRING", "BFLOAT16", "INT16", "UINT16", "UINT4", "INT4")
)
MS = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One node: operator, element types of its inputs, and what else it takes."""

    operator: str
    types: tuple[int, ...]
    domain: str = ""
    opset: int = 21
    attributes: tuple[tuple[str, Any], ...] = ()
    outputs: int = 1

    def __str__(self) -> str:
        names = "-".join(TensorProto.DataType.Name(kind).lower() for kind in self.types)
        more = "-".join(str(value) for _, value in self.attributes)
        return f"{self.domain or 'onnx'}.{self.operator}-{self.opset}-{names}{more and '-'}{more}"

    def model(self) -> onnx.ModelProto:
        names = [f"x{number}" for number in range(len(self.types))]
        outputs = [f"y{number}" for number in range(self.outputs)]
        made = node(self.operator, names, outputs, domain=self.domain, **dict(self.attributes))
        return make_model([made], dict(zip(names, self.types, strict=True)), outputs, opset=self.opset)


NUMBERS = (FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT8, UINT8, INT16, INT32, INT64)
CASES = (
    *(Case("MatMul", (kind, kind)) for kind in NUMBERS),
    *(Case("Conv", (kind, kind)) for kind in NUMBERS),
    *(Case("Add", (kind, kind)) for kind in (*NUMBERS, BOOL)),
    *(Case("Relu", (kind,)) for kind in NUMBERS),
    *(Case("Gelu", (kind,)) for kind in NUMBERS),
    *(Case("LayerNormalization", (kind, kind)) for kind in (FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT32)),
    *(Case("Softmax", (kind,)) for kind in (FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT8)),
    *(Case("HardSwish", (kind,), opset=opset) for kind in (FLOAT, FLOAT16, DOUBLE) for opset in (14, 21)),
    *(Case("Mish", (kind,)) for kind in (FLOAT, FLOAT16, BFLOAT16, DOUBLE)),
    *(Case("Erf", (kind,)) for kind in NUMBERS),
    *(Case("Gather", (kind, INT64)) for kind in (*NUMBERS, STRING, UINT4, INT4)),
    Case("Gather", (FLOAT, INT16)),
    *(Case("Cast", (kind,), attributes=(("to", INT4),)) for kind in (FLOAT, INT8, STRING)),
    *(Case("CastLike", (FLOAT, kind)) for kind in (FLOAT16, INT8, STRING)),
    *(Case("QuantizeLinear", (FLOAT, FLOAT, kind)) for kind in (UINT8, INT8, UINT16, INT16, INT4, UINT4, INT32)),
    *(Case("DequantizeLinear", (kind, FLOAT)) for kind in (UINT8, INT8, UINT16, INT16, INT4, UINT4, INT32, INT64)),
    *(Case("MatMulInteger", (a, b)) for a in (UINT8, INT8) for b in (UINT8, INT8, INT16)),
    *(Case("Where", (BOOL, kind, kind)) for kind in NUMBERS),
    *(Case("Pow", (FLOAT, kind)) for kind in NUMBERS),
    *(Case("ReduceMean", (kind,)) for kind in NUMBERS),
    *(Case("TopK", (kind, INT64), outputs=2) for kind in NUMBERS),
    *(Case("Mod", (kind, kind), attributes=(("fmod", 1),)) for kind in NUMBERS),
    *(Case("Upsample", (FLOAT, FLOAT), opset=opset) for opset in (9, 10)),
    *(Case("GroupNormalization", (kind,) * 3, attributes=(("num_groups", 1),)) for kind in (FLOAT, FLOAT16, DOUBLE)),
    *(Case("RandomNormalLike", (FLOAT,), attributes=(("dtype", kind),)) for kind in (FLOAT, DOUBLE, FLOAT16)),
    *(Case("Gelu", (kind,), domain=MS) for kind in (FLOAT, FLOAT16, DOUBLE, INT8)),
    *(Case("FastGelu", (kind,), domain=MS) for kind in (FLOAT, FLOAT16, DOUBLE)),
    *(Case("DynamicQuantizeMatMul", (FLOAT, kind, FLOAT), domain=MS) for kind in (UINT8, INT8, INT16)),
    *(
        Case("MatMulIntegerToFloat", (a, b, FLOAT, FLOAT), domain=MS)
        for a in (UINT8, INT8, INT16)
        for b in (UINT8, INT8)
    ),
    *(Case("QuantizeLinear", (FLOAT, FLOAT, kind), domain=MS) for kind in (UINT8, INT8, INT16, INT4, INT32)),
    Case("SkipLayerNormalization", (FLOAT, FLOAT, FLOAT), domain=MS),
    Case("PackedAttention", (FLOAT, FLOAT, FLOAT, INT32, INT32), domain=MS, attributes=(("num_heads", 1),)),
    Case("Rfft", (FLOAT,), domain=MS, attributes=(("normalized", 0), ("onesided", 1), ("signal_ndim", 1))),
    Case("NoSuchOperator", (FLOAT,)),
    Case("Attention", (FLOAT, FLOAT, FLOAT), opset=21),
)


def opens(model: onnx.ModelProto) -> bool:
    """Whether this host's ONNX Runtime makes a session; an unforeseen error is no answer."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each status has a class of its own
        known = (
            "Could not find an implementation",
            "Failed to find kernel",
            "is not a registered function",
            "Type Error",
            "is deprecated",
            "No Op registered",
            "is invalid",
        )
        if not any(words in str(error) for words in known):
            raise
        return False
    return True


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_supported_is_what_the_runtime_opens(case: Case, host_table: KernelTable) -> None:
    model = case.model()
    wrong, unknown = judge_nodes(model, host_table)
    assert not unknown
    assert (not wrong) is opens(model), wrong


def test_the_matrix_has_both_kinds(host_table: KernelTable) -> None:
    supported = [not judge_nodes(case.model(), host_table)[0] for case in CASES]
    assert 60 < sum(supported) < len(CASES) - 40


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def check(path: Path, **more: Any) -> dict[str, Any]:
    return by_metric(list(check_operators(path, make_target(runtime_version(), isa=platform.machine(), **more))))


@pytest.mark.usefixtures("host_table")
def test_a_supported_model_passes(tmp_path: Path) -> None:
    path = save(make_model([node("Relu", ["x"], ["y"])], {"x": FLOAT}, ["y"]), tmp_path / "model.onnx")
    found = check(path)
    assert {metric: (item.value, item.verdict) for metric, item in found.items()} == {
        "unsupported_operators": (0, "pass"),
        "opset": (21, "pass"),
        "ir_version": (10, "pass"),
    }
    assert found["opset"].limit == 21
    assert (
        found["unsupported_operators"].where == f"model.onnx on ONNX Runtime {runtime_version()}, CPUExecutionProvider"
    )


@pytest.mark.usefixtures("host_table")
def test_unsupported_nodes_are_counted_and_named(tmp_path: Path) -> None:
    bad = [node("Conv", ["n", "n"], [f"c{number}"], name=f"conv_{number}") for number in range(6)]
    model = make_model([node("Relu", ["x"], ["y"]), *bad], {"x": FLOAT, "n": INT32}, ["y", "c0"])
    finding = check(save(model, tmp_path / "model.onnx"))["unsupported_operators"]
    assert (finding.value, finding.limit, finding.verdict) == (6, 0, "fail")
    assert finding.note.startswith("Conv conv_0: tensor(int32) is no type that the operator defines for T; Conv conv_1")
    assert finding.note.endswith("and 2 more (Conv x 2)")


@pytest.mark.usefixtures("host_table")
def test_a_node_inside_a_branch_counts(tmp_path: Path) -> None:
    good = helper.make_graph([node("Relu", ["x"], ["a"])], "good", [], [onnx.ValueInfoProto(name="a")])
    bad = helper.make_graph([node("Rfft", ["x"], ["b"], domain=MS)], "bad", [], [onnx.ValueInfoProto(name="b")])
    choose = node("If", ["flag"], ["y"], name="choose", then_branch=good, else_branch=bad)
    model = make_model([choose], {"x": FLOAT, "flag": BOOL}, ["y"])
    finding = check(save(model, tmp_path / "model.onnx"))["unsupported_operators"]
    assert finding.value == 1
    assert "com.microsoft.Rfft choose.else_branch/b: the runtime has no CPU kernel" in finding.note


@pytest.mark.usefixtures("host_table")
def test_a_type_that_cant_be_told_is_unjudged_and_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    untyped = [
        node("MurmurHash3", ["x"], ["hash"], domain=MS, name="h"),
        node("Conv", ["hash", "hash"], ["y"], name="c"),
    ]
    save(make_model(untyped, {"x": FLOAT}, ["y"]), path)
    finding = check(path)["unsupported_operators"]
    assert (finding.value, finding.verdict) == (None, "unjudged")
    assert "can't be told: Conv c: the type bound to T isn't known" in finding.note
    known_bad = node("Conv", ["n", "n"], ["z"], name="bad")
    save(make_model([*untyped, known_bad], {"x": FLOAT, "n": INT32}, ["y", "z"]), path)
    finding = check(path)["unsupported_operators"]
    assert (finding.value, finding.verdict) == (1, "fail")
    assert "can't be told" in finding.note


@pytest.mark.usefixtures("host_table")
def test_versions_beyond_the_target_fail(tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": FLOAT}, ["y"], opset=21, ir_version=99)
    found = check(save(model, tmp_path / "model.onnx"), opset_max=20)
    assert (found["opset"].value, found["opset"].limit, found["opset"].verdict) == (21, 20, "fail")
    assert (found["ir_version"].value, found["ir_version"].verdict) == (99, "fail")


def test_the_newest_opset_is_the_runtimes_if_the_profile_allows_more(host_table: KernelTable, tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": FLOAT}, ["y"])
    found = check(save(model, tmp_path / "model.onnx"), opset_max=99)
    assert found["opset"].limit == host_table.opsets[""]


def test_a_release_without_a_table_is_unjudged(tmp_path: Path) -> None:
    path = save(make_model([node("Relu", ["x"], ["y"])], {"x": FLOAT}, ["y"]), tmp_path / "model.onnx")
    found = by_metric(list(check_operators(path, make_target("0.1.2"))))
    assert found["unsupported_operators"].verdict == "unjudged"
    assert "no table of kernels for ONNX Runtime 0.1.2; scripts/list_kernels.py" in found["unsupported_operators"].note
    assert found["opset"].verdict == "pass"
    assert "ir_version" not in found


def test_a_domain_without_or_with_too_new_an_opset_is_wrong(host_table: KernelTable) -> None:
    model = make_model([node("Gelu", ["x"], ["y"], domain=MS)], {"x": FLOAT}, ["y"], domains={MS: 7})
    assert any(
        "opset 7 of com.microsoft: the runtime knows it up to 1" in line for line in judge_nodes(model, host_table)[0]
    )
    del model.opset_import[1:]
    assert judge_nodes(model, host_table)[0] == ("com.microsoft.Gelu y: the model imports no opset of com.microsoft",)


@pytest.mark.usefixtures("host_table")
def test_external_weights_are_not_read(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": FLOAT}, ["y"], initializers=[weights])
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert check(path)["unsupported_operators"].verdict == "pass"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(BadInputError, match="No such file"):
        read_graph(path)
    path.write_bytes(b"\xff\xfe not a model")
    with pytest.raises(BadInputError, match="not an ONNX model"):
        read_graph(path)
    path.write_bytes(b"")
    with pytest.raises(BadInputError, match="no graph or no opset"):
        read_graph(path)
