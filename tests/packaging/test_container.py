"""Whatever is packed comes back byte for byte, and a container that lies about its files is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgeslim.cli import app
from edgeslim.codec import Segment, read_index, write_container
from edgeslim.errors import BadInputError
from edgeslim.packaging.container import LIST_NAME, pack_file, unpack_file


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype("<f4")


def model() -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(weights(1, 100, 50), "a"), numpy_helper.from_array(weights(2, 50, 80), "b")]
    int4 = helper.make_tensor("c", TensorProto.UINT4, [60, 40], bytes(range(256)) * 4 + bytes(176), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["y", "b"], ["z"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 80])],
        [*tensors, int4],
    )
    return helper.make_model(graph)


def round_trip(source: Path, folder: Path) -> list[Path]:
    pack_file(source, folder / "packed.esz")
    return unpack_file(folder / "packed.esz", folder / "out")


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    save_file({"one": weights(3, 300, 40), "two": np.zeros(500, np.int8), "tiny": np.ones(2, np.float32)}, path)
    (out,) = round_trip(path, tmp_path)
    assert out.read_bytes() == path.read_bytes()
    found = {segment.name: segment for segment in read_index(tmp_path / "packed.esz").segments}
    assert (found["one"].dtype, found["one"].shape, found["one"].alphabet) == ("float32", (300, 40), "PLANES")
    assert found["two"].coded_bytes < 20
    assert (tmp_path / "packed.esz").stat().st_size < 0.88 * path.stat().st_size


def test_onnx_with_its_weights_inside(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    (out,) = round_trip(path, tmp_path)
    assert out.read_bytes() == path.read_bytes()
    names = {segment.name: segment.dtype for segment in read_index(tmp_path / "packed.esz").segments}
    assert (names["a"], names["b"], names["c"]) == ("float32", "float32", "uint4x2")


def test_onnx_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.data", size_threshold=100)
    outs = round_trip(path, tmp_path)
    assert [out.name for out in outs] == ["m.onnx", "m.data"]
    for out in outs:
        assert out.read_bytes() == (tmp_path / out.name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["m.data", "m.onnx"]
    (tmp_path / "m.data").unlink()
    with pytest.raises(BadInputError, match="external data"):
        pack_file(path, tmp_path / "again.esz")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.bin", b""), ("m.ort", b"ORTM" + bytes(3_000_000)), ("x.safetensors", b"\xff" * 50), ("y.onnx", b"no"),
        ("z.safetensors", b"\x02\0\0\0\0\0\0\0[]"), ("cut.safetensors", b"\x30\0\0\0\0\0\0\0"
         b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'[:48]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_any_file(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    (out,) = round_trip(tmp_path / name, tmp_path)
    assert out.read_bytes() == data


def test_overlapping_tensors_do_no_harm(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}
    shifted = {**entry, "data_offsets": [50, 150]}
    wrong = {**entry, "shape": [7], "data_offsets": [150, 250]}
    far = {**entry, "data_offsets": [200, 1 << 50]}
    head = json.dumps({"a": entry, "b": shifted, "c": wrong, "d": far, LIST_NAME: entry}).encode()
    data = len(head).to_bytes(8, "little") + head + bytes(range(250))
    (tmp_path / "w.safetensors").write_bytes(data)
    (out,) = round_trip(tmp_path / "w.safetensors", tmp_path)
    assert out.read_bytes() == data


@pytest.mark.parametrize(
    "listed",
    [b"", b"{}", b"[1]", b'[{"name": "a"}]', b'[{"name": "../a", "bytes": 3}]', b'[{"name": "/a", "bytes": 3}]',
     b'[{"name": "a", "bytes": 4}]', b'[{"name": "a", "bytes": -3}, {"name": "b", "bytes": 6}]',
     b'[{"name": "", "bytes": 3}]', b'[{"name": "..", "bytes": 3}]', b'[{"name": "c:a", "bytes": 3}]'],
)  # fmt: skip
def test_a_list_that_lies_is_refused(listed: bytes, tmp_path: Path) -> None:
    segments = [Segment("x", b"abc", "bytes", ()), Segment(LIST_NAME, listed, "bytes", ())]
    write_container(tmp_path / "a.esz", segments)
    with pytest.raises(BadInputError, match=LIST_NAME):
        unpack_file(tmp_path / "a.esz", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_external_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    changed = model()
    tensor = changed.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(BadInputError, match="secret"):
        pack_file(path, tmp_path / "a.esz")


def test_commands(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"abc" * 10_000)
    done = CliRunner().invoke(app, ["pack", str(path), "--json"])
    assert json.loads(done.stdout)["bytes"] == 30_000
    (tmp_path / "w.bin").rename(tmp_path / "old")
    done = CliRunner().invoke(app, ["unpack", f"{path}.esz"])
    assert done.stdout.strip() == str(path)
    assert path.read_bytes() == (tmp_path / "old").read_bytes()
    done = CliRunner().invoke(app, ["pack", str(path), "-o", str(tmp_path / "b.esz")])
    assert "30.0 kB" in done.stdout or "segments" in done.stdout
    for bad in (["pack", str(tmp_path / "none")], ["unpack", str(path)], ["pack", str(path), "-o", str(path)],
                ["unpack", str(tmp_path / "none.esz")], ["unpack", f"{path}.esz", "-o", str(tmp_path)]):  # fmt: skip
        assert CliRunner().invoke(app, bad).exit_code != 0
