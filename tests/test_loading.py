"""``edgeslim.load``: a package in ONNX Runtime, its weights decoded in each way, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeslim
from edgeslim import loading
from edgeslim.codec import Segment, write_container
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import save_graph, weight_spans
from edgeslim.packaging.bundle import Bundle, write_manifest
from edgeslim.packaging.tarball import write_tarball
from edgeslim.target import RuntimeProfile, load_target

WAYS = ("file", "tensors", "memory", "lowest")


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {
        "q": rng.integers(-127, 128, (96, 80), np.int8),
        "s": rng.random((1, 80)).astype(np.float32),
        "nibbles": rng.integers(0, 16, (80, 40), np.uint8),
        "half": rng.normal(size=(40, 200)).astype(np.float32),
    }


def make_graph() -> onnx.ModelProto:
    """``y = (x · (q · s) + twin) · nibbles · half``: int8, float32, uint4 and bfloat16; two at one place."""
    values = weights()
    q, s = numpy_helper.from_array(values["q"], "q"), numpy_helper.from_array(values["s"], "s")
    packed = values["nibbles"].reshape(-1)
    nibbles = helper.make_tensor(
        "nibbles", TensorProto.UINT4, (80, 40), (packed[::2] | packed[1::2] << 4).tobytes(), raw=True
    )
    half = helper.make_tensor(
        "half", TensorProto.BFLOAT16, (40, 200), (values["half"].view("<u4") >> 16).astype("<u2").tobytes(), raw=True
    )
    twin = numpy_helper.from_array(values["s"], "twin")
    nodes = [
        helper.make_node("Cast", ["q"], ["qf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qf", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "twin"], ["b"]),
        helper.make_node("Cast", ["nibbles"], ["nf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["b", "nf"], ["c"]),
        helper.make_node("Cast", ["half"], ["hf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["c", "hf"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 200])],
        [q, s, nibbles, half, twin],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def pack(folder: Path, model: onnx.ModelProto, way: str | None = None) -> Path:
    """The folder of a package: manifest, model, container; ``weights.bin`` lies beside it as ``image``."""
    made, _ = save_graph(ir.from_proto(model), folder / "package")
    proto = onnx.load(made, load_external_data=False)  # what deduplication leaves: two initializers at one place
    places = {tensor.name: tensor for tensor in proto.graph.initializer}
    places["twin"].ClearField("external_data")
    places["twin"].external_data.extend(places["s"].external_data)
    onnx.save(proto, made)
    weights_file = made.parent / "weights.bin"
    image = memoryview(weights_file.read_bytes())
    segments = [
        Segment(span.name, image[span.offset :][: span.length], span.dtype, span.shape) for span in weight_spans(made)
    ]  # fmt: skip
    packed = made.parent / "weights.esz"
    write_container(packed, segments)
    runtime = {"version": "1.23.0", "threads": 1} | ({"loading": way} if way else {})
    facts = {"name": "tiny", "target": "t", "task": {}, "signature": {}, "runtime": runtime}
    files = {"model.onnx": made, "weights.bin": weights_file, "weights.esz": packed}
    write_manifest(made.parent / "manifest.json", facts, files)
    weights_file.rename(folder / "image")
    return made.parent


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("load"), make_graph())


@pytest.fixture
def folder(package: Path, tmp_path: Path) -> Path:
    """A package of this test's own."""
    return Path(shutil.copytree(package, tmp_path / "package"))


def run(session: Any) -> np.ndarray:
    gc.collect()
    return session.run(None, {"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(2, 96)})[0]


def expected() -> np.ndarray:
    values = weights()
    x = np.linspace(-1, 1, 192, dtype=np.float32).reshape(2, 96).astype(np.float64)
    half = ((values["half"].view("<u4") >> 16) << 16).view("<f4")
    return (x @ (values["q"] * values["s"]) + values["s"]) @ values["nibbles"] @ half


@pytest.mark.parametrize("way", [*WAYS, None])
def test_every_way_gives_the_same_outputs(way: Any, folder: Path) -> None:
    session = edgeslim.load(folder, loading=way)
    np.testing.assert_allclose(run(session), expected(), rtol=2e-4)
    assert (folder / "weights.bin").exists() == (way in ("file", "lowest", None))
    assert session.get_session_options().intra_op_num_threads == 1  # the manifest's
    assert edgeslim.load(folder, loading=way, threads=2).get_session_options().intra_op_num_threads == 2


def test_the_bytes_outlive_the_decoder(folder: Path) -> None:
    """Many sessions at once, memory reused in between."""
    sessions = [edgeslim.load(folder, loading=way) for way in ("tensors", "memory") for _ in range(5)]
    noise = [np.random.default_rng(k).bytes(100_000) for k in range(50)]
    for session in sessions:
        np.testing.assert_allclose(run(session), expected(), rtol=2e-4)
    assert noise


@pytest.mark.parametrize("way", ["file", "tensors", "memory"])
def test_the_manifest_chooses(way: str, tmp_path: Path) -> None:
    folder = pack(tmp_path, make_graph(), way)
    np.testing.assert_allclose(run(edgeslim.load(folder)), expected(), rtol=2e-4)
    assert (folder / "weights.bin").exists() == (way == "file")


def test_a_file_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edgeslim.load(folder, loading="file")
    before = (folder / "weights.bin").stat()
    edgeslim.load(folder)
    assert (folder / "weights.bin").stat() == before or (folder / "weights.bin").stat().st_ino == before.st_ino
    damaged = bytearray((folder / "weights.bin").read_bytes())
    damaged[100] ^= 4
    (folder / "weights.bin").write_bytes(damaged)
    np.testing.assert_allclose(run(edgeslim.load(folder)), expected(), rtol=2e-4)


def test_lowest_is_a_file_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.choose_loading("lowest", tmp_path / "not" / "there", 1000) == "file"
    assert loading.choose_loading("lowest", None, 1000) == "memory"
    usage = type("Usage", (), {"free": 999})
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda folder: usage)
    assert loading.choose_loading("lowest", tmp_path, 1000) == "memory"
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    assert loading.choose_loading("lowest", tmp_path, 1000) == "file", "it is there already"
    for way in ("file", "tensors", "memory"):
        assert loading.choose_loading(way, None, 1000) == way


def test_an_archive_is_unpacked_to_the_cache_or_where_one_says(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "cache"))
    names = ("model.onnx", "weights.esz", "manifest.json")
    model, packed, manifest = (package / name for name in names)
    archive = tmp_path / "tiny.tar.gz"
    write_tarball(Bundle(name="tiny", model=model, packed=packed, manifest=manifest, extras=()), archive)
    for way in WAYS:
        np.testing.assert_allclose(run(edgeslim.load(archive, loading=way)), expected(), rtol=2e-4)
    (kept,) = (tmp_path / "cache" / "loaded").iterdir()
    assert kept.name.startswith("tiny-")
    assert sorted(path.name for path in kept.iterdir()) == ["model.onnx", "weights.bin"]
    edgeslim.load(archive, folder=tmp_path / "mine", loading="file")
    assert (tmp_path / "mine" / "weights.bin").is_file()
    monkeypatch.setenv("EDGESLIM_CACHE", "off")
    np.testing.assert_allclose(run(edgeslim.load(archive)), expected(), rtol=2e-4)
    with pytest.raises(BadInputError, match="there is no cache"):
        edgeslim.load(archive, loading="file")


@pytest.mark.parametrize("name", ["model.onnx", "weights.esz"])
@pytest.mark.parametrize("way", ["file", "tensors", "memory"])
def test_a_damaged_package_is_refused(name: str, way: Any, folder: Path) -> None:
    damaged = bytearray((folder / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / name).write_bytes(damaged)
    with pytest.raises(BadInputError):
        edgeslim.load(folder, loading=way)
    assert not (folder / "weights.bin").exists()
    (folder / name).unlink()
    with pytest.raises((BadInputError, FileNotFoundError)):
        edgeslim.load(folder, loading=way)


def test_what_is_no_package_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        edgeslim.load(tmp_path / "none.aar")
    with pytest.raises(BadInputError, match=r"manifest\.json"):
        edgeslim.load(tmp_path)
    with pytest.raises(BadInputError, match="one of file, tensors, memory, lowest"):
        edgeslim.load(folder, loading="magic")  # type: ignore[arg-type]
    table = json.loads((folder / "manifest.json").read_text())
    table["runtime"]["loading"] = "magic"
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(BadInputError, match="loading"):
        edgeslim.load(folder)


def test_weights_that_no_name_reaches_cannot_be_handed_over(tmp_path: Path) -> None:
    """A Constant's value, and a file of another name."""
    values = numpy_helper.from_array(weights()["half"], "v")
    nodes = [
        helper.make_node("Constant", [], ["c"], name="k", value=values),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 200])],
    )  # fmt: skip
    model = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), model)
    proto = onnx.load(model)
    value = proto.graph.node[0].attribute[0].t
    value.data_location = TensorProto.EXTERNAL
    value.ClearField("raw_data")
    onnx.save(proto, model)
    with pytest.raises(BadInputError, match=r"tensor k\.value: .* no initializer of the main graph"):
        loading.open_packed(model, tmp_path / "none.esz", "tensors")
    proto = make_graph()
    onnx.save(proto, model, save_as_external_data=True, location="other.bin", size_threshold=0)
    with pytest.raises(BadInputError, match=r"other\.bin"):
        loading.open_packed(model, tmp_path / "none.esz", "tensors")


def test_a_container_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    write_container(tmp_path / "other.esz", [Segment("q", bytes(5), "uint8", (5,))])
    with pytest.raises(BadInputError, match="its segment 5"):
        loading.open_packed(folder / "model.onnx", tmp_path / "other.esz", "tensors")
    write_container(tmp_path / "none.esz", [])
    with pytest.raises(BadInputError, match="no segment of the container"):
        loading.open_packed(folder / "model.onnx", tmp_path / "none.esz", "tensors")


def test_profiles_name_a_way() -> None:
    assert RuntimeProfile(version="1.0.0").loading == "lowest"
    android = load_target("android-arm64")
    assert android.runtime.loading == "file"  # what the Java loader does
    assert any(source.startswith("loading: ") for source in android.sources)
    assert replace(android.runtime, loading="memory").loading == "memory"
