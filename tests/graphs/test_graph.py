from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.errors import BadInputError
from edgeslim.graphs import graph
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME, constant_array, load_graph, save_graph, weight_spans
from edgeslim.session import open_runner

FEED = {"x": np.linspace(-2, 2, 48, dtype=np.float32).reshape(3, 16)}


def model_of(tensors: dict[str, np.ndarray[Any, Any]], nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """``y = x`` with initializers that nobody needs to use."""
    made = helper.make_graph(
        nodes or [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("which", ["mlp_onnx", "mlp_external"])
def test_inline_and_external_weights_are_read_alike(which: str, request: pytest.FixtureRequest) -> None:
    model = load_graph(request.getfixturevalue(which))
    first = model.graph.initializers["first"].const_value
    assert first is not None
    assert isinstance(first, ir.ExternalTensor) == (which == "mlp_external")
    expected = np.random.default_rng(5).normal(0, 0.25, (16, 96)).astype(np.float32)
    np.testing.assert_array_equal(first.numpy(), expected)


@pytest.mark.parametrize("which", ["mlp_onnx", "mlp_external"])
def test_what_is_saved_runs_as_before(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(which)
    before = source.read_bytes()
    path, weights = save_graph(load_graph(source), tmp_path / "new" / "folder")
    assert (path.name, weights.name) == (MODEL_NAME, WEIGHTS_NAME)
    assert sorted(file.name for file in path.parent.iterdir()) == [MODEL_NAME, WEIGHTS_NAME]
    assert weights.stat().st_size >= 4 * 2 * 16 * 96
    assert path.stat().st_size < 2000
    np.testing.assert_array_equal(open_runner(path)(FEED)["y"], open_runner(source)(FEED)["y"])
    assert source.read_bytes() == before


def test_saving_leaves_the_model_in_memory_as_it_was(mlp_onnx: Path, tmp_path: Path) -> None:
    model = load_graph(mlp_onnx)
    first, _ = save_graph(model, tmp_path / "1")
    assert not isinstance(model.graph.initializers["first"].const_value, ir.ExternalTensor)
    second, _ = save_graph(model, tmp_path / "2")
    for name in (MODEL_NAME, WEIGHTS_NAME):
        assert first.with_name(name).read_bytes() == second.with_name(name).read_bytes()


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    small, large = np.ones(64, np.float32), np.ones(65, np.float32)
    onnx.save(model_of({"small": small, "large": large}), tmp_path / "m.onnx")
    path, weights = save_graph(load_graph(tmp_path / "m.onnx"), tmp_path / "out")
    assert [span.name for span in weight_spans(path)] == ["large"]
    assert weights.read_bytes() == large.tobytes()


def test_a_model_without_large_tensors_has_an_empty_weights_file(tmp_path: Path) -> None:
    onnx.save(model_of({}), tmp_path / "m.onnx")
    path, weights = save_graph(load_graph(tmp_path / "m.onnx"), tmp_path / "out")
    assert weights.read_bytes() == b""
    assert weight_spans(path) == ()


def test_spans_cover_the_file_without_gaps_and_name_what_they_hold(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    tensors = {
        "odd": generator.integers(-128, 127, (7, 101), np.int8),
        "paged": generator.normal(0, 1, (130, 130)).astype(np.float32),
        "half": generator.normal(0, 1, (200,)).astype(np.float16),
        "ids": generator.integers(0, 9, (40,), np.int64),
        "truth": np.ones(300, bool),
    }
    onnx.save(model_of(tensors), tmp_path / "m.onnx")
    path, weights = save_graph(load_graph(tmp_path / "m.onnx"), tmp_path / "out")
    spans, image, end = weight_spans(path), weights.read_bytes(), 0
    for span in spans:
        assert span.offset == end
        assert span.length > 0
        end += span.length
        if span.name in tensors:
            array = tensors[span.name]
            assert span.shape == array.shape
            assert image[span.offset : span.offset + span.length] == array.tobytes()
        else:
            assert span.name == f"pad@{span.offset}"
            assert (span.dtype, span.shape) == ("bytes", (span.length,))
    assert end == len(image)
    named = {span.name: span for span in spans if not span.name.startswith("pad@")}
    dtypes = {"odd": "int8", "paged": "float32", "half": "float16", "ids": "int64", "truth": "bytes"}
    assert {name: span.dtype for name, span in named.items()} == dtypes
    assert named["paged"].offset % graph.PAGE_BYTES == 0  # so that a runtime can map it
    assert len(spans) > len(named), "there is padding, and it is a span too"


def test_tensors_that_share_their_bytes_make_one_span(tmp_path: Path) -> None:
    tensors = {"a": np.arange(100, dtype=np.float32), "b": np.zeros(100, np.float32)}
    onnx.save(model_of(tensors), tmp_path / MODEL_NAME, save_as_external_data=True, location=WEIGHTS_NAME)
    model = onnx.load(tmp_path / MODEL_NAME, load_external_data=False)
    for tensor in model.graph.initializer:
        fields = {"location": WEIGHTS_NAME, "offset": "0", "length": "400"}
        del tensor.external_data[:]
        for key, value in fields.items():
            tensor.external_data.add(key=key, value=value)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    onnx.save(model, tmp_path / MODEL_NAME)
    (tmp_path / WEIGHTS_NAME).write_bytes(tensors["a"].tobytes() + b"tail")
    first, second = weight_spans(tmp_path / MODEL_NAME)
    assert (first.offset, first.length, first.dtype) == (0, 400, "float32")
    assert (second.name, second.offset, second.length) == ("pad@400", 400, 4)


@pytest.mark.parametrize(
    ("content", "got", "expected"),
    [
        (None, "No such file", "a readable ONNX file"),
        (b"", "a graph without nodes", "at least one operator"),
        (b"\x00\x01\x02 this is text", "not a whole ONNX model", "an ONNX file"),
        (b"<html>404</html>", "not a whole ONNX model", "an ONNX file"),
    ],
    ids=["missing", "empty", "binary", "page"],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes | None, got: str, expected: str, refuses: Any) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with refuses(BadInputError, where=str(path), got=got, expected=expected):
        load_graph(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_download_that_was_cut_short(mlp_onnx: Path, tmp_path: Path, share: float, refuses: Any) -> None:
    content = mlp_onnx.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with refuses(BadInputError, where=str(path), got="not a whole ONNX model", hint="cut short"):
        load_graph(path)


def test_a_graph_without_nodes(tmp_path: Path, refuses: Any) -> None:
    model = model_of({})
    del model.graph.node[:]
    onnx.save(model, tmp_path / "m.onnx")
    with refuses(BadInputError, where="m.onnx", got="a graph without nodes", expected="at least one operator"):
        load_graph(tmp_path / "m.onnx")


def test_files_above_protobufs_limit_are_not_even_read(
    mlp_onnx: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    monkeypatch.setattr(graph, "MAX_GRAPH_BYTES", 100)
    with refuses(BadInputError, where=str(mlp_onnx), got="bytes", expected="at most 2 GiB, weights external"):
        load_graph(mlp_onnx)


def relocate(path: Path, **fields: str | None) -> None:
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "second")
    known = {item.key: item.value for item in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("fields", "got", "expected"),
    [
        ({"location": "../outside.data"}, "external data at ../outside.data", "inside the model's folder"),
        ({"location": "/etc/hostname"}, "external data at /etc/hostname", "inside the model's folder"),
        ({"location": "link.data"}, "external data at link.data", "inside the model's folder"),
        ({"location": "gone.data"}, "external data gone.data isn't there", "the file beside the model"),
        ({"location": "."}, "external data . isn't there", "the file beside the model"),
        ({"offset": "100000000"}, "6,144 bytes at 100,000,000 of a file", "6,144 bytes inside mlp.data"),
        ({"offset": "7000"}, "6,144 bytes at 7,000 of a file of", "6,144 bytes inside mlp.data"),
        ({"length": "100"}, "100 bytes at", "6,144 bytes inside mlp.data"),
        ({"length": None, "offset": "7000"}, "6,144 bytes at 7,000 of a file of", "6,144 bytes inside mlp.data"),
        ({"offset": "-1"}, "", ""),
        ({"length": "many"}, "", ""),
    ],
)
def test_external_data_that_leaves_its_place(
    mlp_external: Path, tmp_path: Path, fields: dict[str, str | None], got: str, expected: str, refuses: Any
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in mlp_external.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "outside.data").write_bytes(bytes(100_000))
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    path = folder / mlp_external.name
    relocate(path, **fields)
    with refuses(BadInputError, where=str(path), got=got, expected=expected):
        load_graph(path)


def test_external_data_of_a_constant_inside_a_branch_is_looked_at_too(tmp_path: Path, refuses: Any) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.data")
    tensor.external_data.add(key="length", value="16")
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, [4])]
    branch = helper.make_graph([helper.make_node("Constant", [], ["r"], value=tensor)], "branch", [], result)
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True), "c"))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    onnx.save(model_of({}, [condition, choice]), tmp_path / "m.onnx")
    with refuses(BadInputError, where="m.onnx", got="external data at ../outside.data", expected="inside"):
        load_graph(tmp_path / "m.onnx")


def constants() -> ir.Model:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(value, "c")),
        helper.make_node("Constant", [], ["number"], value_float=1.5),
        helper.make_node("Identity", ["weight"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"]),
        helper.make_node("Transpose", ["cube"], ["rolled"], perm=[2, 0, 1]),
        helper.make_node("Transpose", ["x"], ["turned_input"]),
        helper.make_node("Relu", ["weight"], ["computed"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    cube = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    return ir.from_proto(model_of({"weight": value, "cube": cube}, nodes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weight", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("constant", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("same", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("turned", np.arange(6, dtype=np.float32).reshape(2, 3).T),
        ("rolled", np.arange(24, dtype=np.int8).reshape(2, 3, 4).transpose(2, 0, 1)),
        ("number", None),
        ("turned_input", None),
        ("computed", None),
        ("x", None),
        ("y", None),
    ],
)
def test_constant_array(name: str, expected: np.ndarray[Any, Any] | None) -> None:
    model = constants()
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= dict(model.graph.initializers) | {value.name: value for value in model.graph.inputs}
    found = constant_array(values[name])
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_nothing_is_no_constant() -> None:
    assert constant_array(None) is None
