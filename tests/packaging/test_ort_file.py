"""The walk through a ``.ort`` file: the initializers that ONNX Runtime itself wrote, and nothing from hostile files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.packaging.container import pack_file, unpack_file
from edgeslim.packaging.ort_file import find_tensors

RNG = np.random.default_rng(11)
WEIGHTS = {
    "w": RNG.integers(-40, 40, (120, 90)).astype(np.int8),
    "s": RNG.random((1, 90)).astype(np.float32),
    "b/ü": RNG.random((90,)).astype(np.float32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as ONNX Runtime saves it in its own format."""
    folder = tmp_path_factory.mktemp("ort")
    nodes = [
        helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wf", "s"], ["ws"]),
        helper.make_node("MatMul", ["x", "ws"], ["a"]),
        helper.make_node("Add", ["a", "b/ü"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 120])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 90])],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(folder / "model.ort")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return folder / "model.ort"


def test_every_initializer_is_found_with_type_and_shape(saved: Path) -> None:
    data = np.fromfile(saved, np.uint8)
    found = {tensor.name: tensor for tensor in find_tensors(data)}
    assert set(found) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        tensor = found[name]
        assert tensor.shape == value.shape
        assert tensor.data_type == helper.np_dtype_to_tensor_dtype(value.dtype)
        assert data[tensor.start : tensor.start + tensor.size].tobytes() == value.tobytes()


def test_packed_by_tensors_and_unpacked_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    info = pack_file(saved, tmp_path / "model.esz")
    rows = {segment.name: segment for segment in info.segments if segment.dtype != "bytes"}
    assert {name: (row.dtype, row.shape) for name, row in rows.items()} == {
        name: (str(value.dtype), value.shape) for name, value in WEIGHTS.items()
    }
    unpack_file(tmp_path / "model.esz", tmp_path / "again.ort")
    assert (tmp_path / "again.ort").read_bytes() == saved.read_bytes()
    session = ort.InferenceSession(str(tmp_path / "again.ort"), providers=["CPUExecutionProvider"])
    x = RNG.random((2, 120)).astype(np.float32)
    want = x @ (WEIGHTS["w"] * WEIGHTS["s"]) + WEIGHTS["b/ü"]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-4)


def test_what_is_no_ort_file_has_no_tensors(tmp_path: Path) -> None:
    for data in (b"", b"ORTM", bytes(100), b"\x08\0\0\0ORTM", b"\xff\xff\xff\x7fORTM" + bytes(50)):
        assert find_tensors(np.frombuffer(data, np.uint8)) == ()
        (tmp_path / "file.ort").write_bytes(data)
        pack_file(tmp_path / "file.ort", tmp_path / "file.esz")
        unpack_file(tmp_path / "file.esz", tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == data


def test_damage_never_stops_the_walk_from_ending_nor_packing(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    tensors = find_tensors(np.frombuffer(whole, np.uint8))
    graph = [at for at in range(len(whole) - 4) if not any(t.start <= at < t.start + t.size for t in tensors)]
    for number, at in enumerate(RNG.choice(graph, 400, replace=False).tolist()):
        damaged = bytearray(whole)
        damaged[at : at + 4] = struct.pack("<I", (0xFFFFFFFF, 0x7FFFFFFF, 0, int(RNG.integers(1 << 17)))[number % 4])
        data = np.frombuffer(bytes(damaged), np.uint8)
        for tensor in find_tensors(data):
            assert 0 <= tensor.start <= tensor.start + tensor.size <= len(damaged)
        if number < 40:
            (tmp_path / "damaged.ort").write_bytes(damaged)
            pack_file(tmp_path / "damaged.ort", tmp_path / "damaged.esz")
            unpack_file(tmp_path / "damaged.esz", tmp_path / "again.ort")
            assert (tmp_path / "again.ort").read_bytes() == bytes(damaged)
    for size in range(0, len(whole), 997):
        find_tensors(np.frombuffer(whole[:size], np.uint8))


def test_a_huge_vector_is_not_followed() -> None:
    """A graph that claims 2^30 initializers in a file of 100 bytes."""
    data = bytearray(120)
    data[4:8] = b"ORTM"
    struct.pack_into("<I", data, 0, 40)  # the root, whose vtable is at 8
    struct.pack_into("<HHHH", data, 8, 8, 8, 0, 4)
    struct.pack_into("<iI", data, 40, 32, 12)  # model at 56
    struct.pack_into("<HHHHHHHHHH", data, 80, 20, 8, 0, 0, 0, 0, 0, 0, 0, 4)
    struct.pack_into("<iI", data, 56, -24, 8)  # graph at 68
    struct.pack_into("<HHH", data, 100, 6, 8, 4)
    struct.pack_into("<iI", data, 68, -32, 36)  # initializers at 108
    struct.pack_into("<I", data, 108, 1 << 30)
    assert find_tensors(np.frombuffer(bytes(data), np.uint8)) == ()
    struct.pack_into("<I", data, 108, 1)  # the walk does get there: one tensor, at itself
    assert find_tensors(np.frombuffer(bytes(data), np.uint8)) == ()
