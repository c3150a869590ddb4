from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import BOOL, FLOAT, FLOAT16, INT8, INT64, UINT8, make_model, node

from edgeslim.checks.kernel_table import KernelTable
from edgeslim.checks.value_types import TypedNode, type_text, walk_model
from edgeslim.errors import BadInputError

F, I64, B = "tensor(float)", "tensor(int64)", "tensor(bool)"


def walk(model: onnx.ModelProto, table: KernelTable) -> list[TypedNode]:
    return list(walk_model(model, table.signature))


def output_types(model: onnx.ModelProto, table: KernelTable) -> dict[str, str | None]:
    return {
        name: item for typed in walk(model, table) for name, item in zip(typed.node.output, typed.outputs, strict=True)
    }


def value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def test_types_pass_through_operators_of_other_domains(host_table: KernelTable) -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"], domain="com.microsoft"),
            node("MatMulIntegerToFloat", ["q", "w", "scale", "scale"], ["m"], domain="com.microsoft"),
            node("Cast", ["m"], ["h"], to=FLOAT16),
            node("BiasGelu", ["h", "h"], ["g"], domain="com.microsoft"),
            node("DynamicQuantizeLinear", ["m"], ["d", "ds", "dz"]),
        ],
        {"x": FLOAT, "scale": FLOAT, "zero": UINT8, "w": INT8},
        ["g"],
    )
    assert output_types(model, host_table) == {
        "q": "tensor(uint8)",
        "m": F,
        "h": "tensor(float16)",
        "g": "tensor(float16)",
        "d": "tensor(uint8)",
        "ds": F,
        "dz": "tensor(uint8)",
    }


def test_types_that_come_from_attributes(host_table: KernelTable) -> None:
    model = make_model(
        [
            node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([1], np.int8))),
            node("Constant", [], ["f"], value_float=1.0),
            node("Constant", [], ["s"], value_ints=[1, 2]),
            node("ConstantOfShape", ["s"], ["default"]),
            node("ConstantOfShape", ["s"], ["filled"], value=helper.make_tensor("v", INT64, [1], [3])),
            node("RandomNormal", [], ["r"], shape=[1], dtype=TensorProto.DOUBLE),
            node("QuantizeLinear", ["f", "f"], ["q"]),
            node("QuantizeLinear", ["f", "f"], ["q16"], output_dtype=TensorProto.INT16),
            node("SequenceConstruct", ["c", "c"], ["list"]),
            node("SequenceAt", ["list", "s"], ["item"]),
            node("Shape", ["c"], ["shape"]),
            node("Equal", ["c", "c"], ["same"]),
        ],
        {"x": FLOAT},
        ["item"],
    )
    assert output_types(model, host_table) == {
        "c": "tensor(int8)",
        "f": F,
        "s": I64,
        "default": F,
        "filled": I64,
        "r": "tensor(double)",
        "q": "tensor(uint8)",
        "q16": "tensor(int16)",
        "list": "seq(tensor(int8))",
        "item": "tensor(int8)",
        "shape": I64,
        "same": B,
    }


def test_subgraphs_see_the_outer_values_and_give_their_outputs_types(host_table: KernelTable) -> None:
    then = helper.make_graph([node("Cast", ["x"], ["t"], to=INT64)], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Identity", ["n"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    body = helper.make_graph(
        [node("Add", ["carried", "carried"], ["next"]), node("Identity", ["go"], ["on"]), node("Neg", ["x"], ["seen"])],
        "body",
        [onnx.ValueInfoProto(name=name) for name in ("i", "go", "carried")],
        [onnx.ValueInfoProto(name=name) for name in ("on", "next", "seen")],
    )
    model = make_model(
        [
            node("If", ["flag"], ["chosen"], name="choose", then_branch=then, else_branch=other),
            node("Loop", ["", "flag", "chosen"], ["last", "all"], name="repeat", body=body),
        ],
        {"flag": BOOL, "x": FLOAT, "n": INT64},
        ["last", "all"],
    )
    assert output_types(model, host_table) == {
        "t": I64,
        "e": I64,
        "chosen": I64,
        "next": I64,
        "on": B,
        "seen": F,
        "last": I64,
        "all": F,
    }
    assert {typed.path for typed in walk(model, host_table)} == {
        "",
        "choose.then_branch/",
        "choose.else_branch/",
        "repeat.body/",
    }


def test_a_function_is_walked_at_each_call_with_its_attributes(host_table: KernelTable) -> None:
    cast = node("Cast", ["a"], ["b"])
    cast.attribute.append(onnx.AttributeProto(name="to", ref_attr_name="kind", type=onnx.AttributeProto.INT))
    function = helper.make_function("mine", "Convert", ["a"], ["b"], [cast], [helper.make_opsetid("", 13)], ["kind"])
    model = make_model(
        [
            node("Convert", ["x"], ["y"], domain="mine", name="first", kind=INT64),
            node("Convert", ["x"], ["z"], domain="mine", name="second", kind=FLOAT16),
            node("Identity", ["z"], ["out"]),
        ],
        {"x": FLOAT},
        ["y", "out"],
        functions=[function],
        domains={"mine": 1},
    )
    found = [(typed.path, typed.node.op_type, typed.outputs[0], typed.opsets[""]) for typed in walk(model, host_table)]
    assert found == [
        ("first/", "Cast", I64, 13),
        ("second/", "Cast", "tensor(float16)", 13),
        ("", "Identity", "tensor(float16)", 21),
    ]


def test_what_cant_be_told_is_none_unless_the_file_states_it(host_table: KernelTable) -> None:
    model = make_model(
        [node("Strange", ["x"], ["y"], domain="mine"), node("Relu", ["y"], ["z"]), node("Dropout", ["z"], ["o", ""])],
        {"x": FLOAT},
        ["o"],
        domains={"mine": 1},
    )
    assert output_types(model, host_table) == {"y": None, "z": None, "o": None, "": ""}
    model.graph.value_info.append(value("y", FLOAT))
    assert output_types(model, host_table) == {"y": F, "z": F, "o": F, "": ""}


def test_initializers_have_types_and_absent_inputs_are_marked(host_table: KernelTable) -> None:
    model = make_model(
        [node("Clip", ["x", "", "most"], ["y"])],
        {"x": FLOAT},
        ["y"],
        initializers=[helper.make_tensor("most", FLOAT, [], [6.0])],
    )
    (typed,) = walk(model, host_table)
    assert (typed.inputs, typed.outputs) == ((F, "", F), (F,))


def test_a_function_that_calls_itself_is_refused(host_table: KernelTable) -> None:
    opsets = [helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Again", ["a"], ["b"], [node("Again", ["a"], ["b"], domain="mine")], opsets)
    model = make_model(
        [node("Again", ["x"], ["y"], domain="mine")], {"x": FLOAT}, ["y"], functions=[function], domains={"mine": 1}
    )
    with pytest.raises(BadInputError, match="more than 64 deep"):
        walk(model, host_table)


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (helper.make_tensor_type_proto(FLOAT, None), "tensor(float)"),
        (helper.make_tensor_type_proto(TensorProto.UINT4, [1]), "tensor(uint4)"),
        (helper.make_sparse_tensor_type_proto(FLOAT, [1]), "sparse_tensor(float)"),
        (helper.make_sequence_type_proto(helper.make_tensor_type_proto(INT64, None)), "seq(tensor(int64))"),
        (helper.make_optional_type_proto(helper.make_tensor_type_proto(BOOL, None)), "optional(tensor(bool))"),
        (
            helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, None)),
            "map(string,tensor(float))",
        ),
        (helper.make_tensor_type_proto(0, None), None),
        (onnx.TypeProto(), None),
    ],
)
def test_type_text(proto: onnx.TypeProto, text: str | None) -> None:
    assert type_text(proto) == text
