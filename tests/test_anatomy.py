"""Where the bytes are: every figure beside plain NumPy, and the files that nobody should believe."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim import codec
from edgeslim.anatomy import ValueFacts, count_levels, dissect_model, measure_values
from edgeslim.comparison import compare_models
from edgeslim.errors import BadInputError, MissingToolError
from edgeslim.graphs import graph
from edgeslim.module_paths import GROUPS, block_path, group_layers, layer_path
from edgeslim.packaging.bundle import Bundle, write_manifest
from edgeslim.packaging.tarball import write_tarball
from edgeslim.tensor_files import CHUNK_BYTES, StoredTensor, TensorFile, read_onnx, read_safetensors

RANDOM = np.random.default_rng(1)


def stored(raw: bytes, dtype: str, bits: int, values: int, name: str = "t", cut: int = CHUNK_BYTES) -> StoredTensor:
    return StoredTensor(
        name=name,
        dtype=dtype,
        shape=(values,),
        values=values,
        bits=bits,
        stored_bytes=len(raw),
        bytes=len(raw),
        chunks=lambda: (raw[at : at + cut] for at in range(0, len(raw), cut)),
    )


def expected(values: np.ndarray[Any, Any], zeros: int) -> ValueFacts:
    """The facts by NumPy, from bit patterns."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return ValueFacts(zeros=zeros, distinct=counts.size, entropy_bits=float(-(share * np.log2(share)).sum()))


def same(found: ValueFacts, wanted: ValueFacts) -> None:
    assert (found.zeros, found.distinct) == (wanted.zeros, wanted.distinct)
    assert found.entropy_bits == pytest.approx(wanted.entropy_bits, abs=1e-9)


# Values


def test_a_tensor_worked_by_hand() -> None:
    """Eight values: four 0, two 1, one 2, one -1; 4/8 1 bit + 2/8 2 bits + 2 times 1/8 3 bits = 1.75 bits."""
    raw = np.array([0, 0, 0, 0, 1, 1, 2, -1], np.int8).tobytes()
    same(measure_values(stored(raw, "int8", 8, 8)), ValueFacts(zeros=4, distinct=4, entropy_bits=1.75))


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("int8", np.int8),
        ("uint8", np.uint8),
        ("int16", np.int16),
        ("int32", np.int32),
        ("uint64", np.uint64),
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float32", np.float32),
        ("float64", np.float64),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
    ],
)
def test_every_width_of_value(dtype: str, kind: Any) -> None:
    """Few different values, zeros of both signs among them, over several chunks."""
    few = RANDOM.integers(-3 if np.issubdtype(np.dtype(kind), np.signedinteger) else 0, 4, 5000)
    values = few.astype(kind)
    if "float" in dtype:
        values[:100] = kind(-0.0)
    width = values.dtype.itemsize
    patterns = np.frombuffer(values.tobytes(), f"<u{width}")
    zeros = int(np.count_nonzero(values.astype(np.float64) == 0))
    found = measure_values(stored(values.tobytes(), dtype, 8 * width, values.size, cut=4096))
    same(found, expected(patterns, zeros))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_values_start_in_the_low_bits_and_the_last_byte_may_be_partial(bits: int) -> None:
    values = RANDOM.integers(0, 1 << bits, 2001)
    per_byte = 8 // bits
    padded = np.concatenate([values, np.full(-values.size % per_byte, (1 << bits) - 1)]).reshape(-1, per_byte)
    raw = (padded << (np.arange(per_byte) * bits)).sum(axis=1).astype(np.uint8).tobytes()
    tensor = stored(raw, f"uint{bits}", bits, values.size, cut=100)
    same(measure_values(tensor), expected(values, int(np.count_nonzero(values == 0))))
    assert count_levels(tensor).tolist() == np.bincount(values, minlength=1 << bits).tolist()


def test_dense_floats_are_judged_byte_by_byte() -> None:
    """Nearly all 100,000 values differ: their own entropy would only tell how many there are."""
    values = RANDOM.normal(size=100_000).astype(np.float32)
    columns = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, 4)
    by_hand = 0.0
    for column in columns.T:
        share = np.bincount(column, minlength=256) / values.size
        by_hand -= float((share[share > 0] * np.log2(share[share > 0])).sum())
    found = measure_values(stored(values.tobytes(), "float32", 32, values.size))
    assert found.distinct is None
    assert found.entropy_bits == pytest.approx(by_hand, abs=1e-9)
    assert 16 < by_hand < 32


def test_clustered_floats_are_judged_by_value() -> None:
    values = RANDOM.normal(size=16).astype(np.float32)[RANDOM.integers(0, 16, 300_000)]
    found = measure_values(stored(values.tobytes(), "float32", 32, values.size, cut=1 << 16))
    same(found, expected(values, 0))


def test_no_values_and_strange_widths() -> None:
    assert measure_values(stored(b"", "int8", 8, 0)) == ValueFacts(zeros=0, distinct=0, entropy_bits=None)
    assert measure_values(stored(b"\0\0\0", "float6e2m3", 6, 4)).entropy_bits is None


# Layers and groups


@pytest.mark.parametrize(
    ("name", "node", "layer", "block"),
    [
        ("encoder.layer.0.output.dense.weight", "", "encoder.layer.0.output.dense", "encoder.layer.0"),
        ("/encoder/layer.11/output/dense/MatMul.weight_int8", "", "encoder.layer.11.output.dense", "encoder.layer.11"),
        ("onnx::MatMul_665", "/h.3/mlp/fc/MatMul", "h.3.mlp.fc", "h.3"),
        ("val_47", "node_MatMul_46", "node_MatMul_46", "node_MatMul_46"),
        ("node_MatMul_46.weight_int8", "node_MatMul_46.int8", "node_MatMul_46", "node_MatMul_46"),
        ("fc.weight", "", "fc", "fc"),
        ("layer1.0.conv1.weight", "", "layer1.0.conv1", "layer1.0"),
        ("/Constant_1_output_0", "/Slice", "", ""),
        ("", "", "", ""),
    ],
)
def test_paths(name: str, node: str, layer: str, block: str) -> None:
    assert layer_path(name, node) == layer
    assert block_path(layer) == block


@pytest.mark.parametrize(
    ("group", "layers"),
    [
        ("embeddings", ["embeddings.word_embeddings", "transformer.wte", "model.embed_tokens", "tok_embeddings"]),
        (
            "attention",
            ["h.0.attn.c_attn", "model.layers.0.self_attn.q_proj", "block.0.layer.0.SelfAttention.q", "q_proj"],
        ),
        ("ffn", ["h.0.mlp.c_fc", "encoder.layer.1.intermediate.dense", "layers.2.feed_forward.w1", "block.ffn.lin1"]),
        ("other", ["pooler.dense", "h.0.ln_1", "layer.0.attention.output.LayerNorm", "conv1", "lm_head", "", "bn1"]),
    ],
)
def test_words_in_paths_make_groups(group: str, layers: list[str]) -> None:
    assert dict.fromkeys(layers, group) == group_layers(layers)


def test_what_stands_beside_attention_in_a_block_is_feed_forward() -> None:
    layers = ["encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense", "decoder.0.output.dense"]
    assert list(group_layers(layers).values()) == ["attention", "ffn", "other"]


# Files


def test_a_hugging_face_folder(tiny_bert: Path) -> None:
    from safetensors.numpy import load_file

    truth = load_file(tiny_bert / "model.safetensors")
    found = dissect_model(str(tiny_bert))
    assert {row.name for row in found.tensors} == set(truth)
    for row in found.tensors:
        array = truth[row.name]
        assert (row.shape, row.dtype, row.parameters) == (array.shape, "float32", array.size)
        assert row.stored_bytes == row.runtime_bytes == array.nbytes
        assert row.sparsity == np.mean(array == 0)
        assert row.distinct == np.unique(array.view(np.uint32)).size
    assert found.total.parameters == sum(array.size for array in truth.values())
    assert [group.group for group in found.groups] == list(GROUPS)
    for name in ("parameters", "stored_bytes", "runtime_bytes", "tensors"):
        assert sum(getattr(group, name) for group in found.groups) == getattr(found.total, name)
    by_group = {row.name: row.group for row in found.tensors}
    assert by_group["encoder.layer.1.output.dense.weight"] == "ffn"
    assert by_group["encoder.layer.1.attention.output.dense.bias"] == "attention"
    assert by_group["encoder.layer.1.output.LayerNorm.bias"] == "other"
    sizes = [row.stored_bytes for row in found.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert found.bytes == (tiny_bert / "model.safetensors").stat().st_size
    assert dissect_model(str(tiny_bert / "model.safetensors")).tensors == found.tensors


def test_onnx_inline_and_external_say_the_same(mlp_onnx: Path, mlp_external: Path) -> None:
    inline, external = dissect_model(str(mlp_onnx)), dissect_model(str(mlp_external))
    assert inline.tensors == external.tensors
    truth = {item.name: numpy_helper.to_array(item) for item in onnx.load(mlp_onnx).graph.initializer}
    assert {row.name: row.parameters for row in inline.tensors} == {name: array.size for name, array in truth.items()}
    assert {row.layer for row in inline.tensors} == {"layer_1", "layer_1_bias", "layer_2"}
    assert [file.name for file in external.files] == ["mlp-external.onnx", "mlp.data"]


def test_bytes_that_two_tensors_share_count_once(mlp_external: Path, tmp_path: Path) -> None:
    model = onnx.load(mlp_external, load_external_data=False)
    twin = TensorProto()
    twin.CopyFrom(model.graph.initializer[0])
    twin.name = "twin"
    model.graph.initializer.append(twin)
    (tmp_path / "mlp.data").write_bytes((mlp_external.parent / "mlp.data").read_bytes())
    onnx.save(model, tmp_path / "twin.onnx")
    rows = {row.name: row for row in dissect_model(str(tmp_path / "twin.onnx")).tensors}
    assert rows["twin"].stored_bytes == 0
    assert rows["twin"].runtime_bytes == rows["first"].stored_bytes == rows["first"].runtime_bytes > 0


def test_weights_that_a_kernel_takes_packed_count_one_by_one(tmp_path: Path) -> None:
    packed = RANDOM.integers(0, 256, (16, 1, 16), dtype=np.uint8)
    tensors = {"b": packed, "scales": np.ones(16, np.float32)}
    node = helper.make_node("MatMulNBits", ["x", "b", "scales"], ["y"], K=32, N=16, bits=4, block_size=32,
                            domain="com.microsoft", name="/h.0/mlp/MatMul")  # fmt: skip
    value = helper.make_tensor_value_info
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    made = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1, 32])], [value("y", TensorProto.FLOAT, [1, 16])], initializers
    )
    onnx.save(helper.make_model(made), tmp_path / "m.onnx")
    row = next(row for row in dissect_model(str(tmp_path / "m.onnx")).tensors if row.name == "b")
    assert (row.dtype, row.parameters, row.bits, row.group) == ("uint4", 512, 4.0, "ffn")
    nibbles = np.stack([packed & 15, packed >> 4])
    assert row.sparsity == np.mean(nibbles == 0)
    assert row.distinct == np.unique(nibbles).size


Pack = Callable[..., Path]


@pytest.fixture
def pack(mlp_onnx: Path, tmp_path: Path) -> Pack:
    """A tarball of the perceptron as a build makes it, by the parts that a build uses."""

    def run(name: str = "mlp") -> Path:
        model, weights = graph.save_graph(graph.load_graph(mlp_onnx), tmp_path / "graph")
        image = weights.read_bytes()
        spans = graph.weight_spans(model)
        packed = tmp_path / "weights.esz"
        codec.write_container(
            packed,
            [
                codec.Segment(
                    name=span.name,
                    data=image[span.offset : span.offset + span.length],
                    dtype=span.dtype,
                    shape=span.shape,
                )
                for span in spans
            ],
        )
        facts = {"name": name, "target": "board", "task": {}, "signature": {}, "runtime": {"version": "1.29.0"}}
        manifest = tmp_path / "manifest.json"
        write_manifest(manifest, facts, {"model.onnx": model, "weights.bin": weights, "weights.esz": packed})
        bundle = Bundle(name=name, model=model, packed=packed, manifest=manifest, extras=())
        return write_tarball(bundle, tmp_path / f"{name}.tar.gz")

    return run


def test_a_package_tells_what_its_container_stores(pack: Pack, mlp_onnx: Path, tmp_path: Path) -> None:
    path = pack()
    found, float_model = dissect_model(str(path)), dissect_model(str(mlp_onnx))
    segments = {segment.name: segment for segment in codec.read_index(tmp_path / "weights.esz").segments}
    for row in found.tensors:
        segment = segments[row.name]
        assert (row.stored_bytes, row.runtime_bytes) == (segment.coded_bytes, segment.decoded_bytes)
        assert row.alphabet.split()[0] == segment.alphabet
    assert {row.name: row.entropy_bits for row in found.tensors} == {
        row.name: row.entropy_bits for row in float_model.tensors
    }
    assert found.bytes == path.stat().st_size
    assert {file.name for file in found.files} == {"manifest.json", "model.onnx", "weights.esz"}


def test_before_and_after_are_matched_by_block(tiny_bert: Path) -> None:
    before = read_safetensors([tiny_bert / "model.safetensors"])
    halves = tuple(
        stored(b"\0" * (tensor.stored_bytes // 4), "int8", 8, tensor.values, tensor.name) for tensor in before.tensors
    )
    found = compare_models(before, TensorFile(kind="onnx", files=(), tensors=halves))
    assert sum(sum(block.before) for block in found.blocks) == sum(tensor.stored_bytes for tensor in before.tensors)
    for block in found.blocks:
        assert [size * 4 for size in block.after] == list(block.before)
    assert {"encoder.layer.0", "encoder.layer.1"} <= {block.block for block in found.blocks}
    assert all(levels.counts[128] == sum(levels.counts) for levels in found.levels)  # all zero


def test_many_blocks_end_in_one_row() -> None:
    many = tuple(stored(b"x" * (100 + n), "uint8", 8, 100 + n, f"stem{n}.conv.weight") for n in range(90))
    before = TensorFile(kind="onnx", files=(), tensors=many)
    found = compare_models(before, before)
    assert len(found.blocks) == 41
    assert found.blocks[-1].block == "50 smaller layers"
    assert sum(sum(block.before) for block in found.blocks) == sum(100 + n for n in range(90))


def test_levels_of_a_grid_a_codebook_and_plain_floats() -> None:
    ints = RANDOM.integers(-127, 128, 5000).astype(np.int8)
    book = np.array([-2.0, 0.0, 0.25, 7.0], np.float32)[RANDOM.integers(0, 4, 4000)]
    dense = RANDOM.normal(size=3000).astype(np.float32)
    tensors = [
        stored(ints.tobytes(), "int8", 8, ints.size, "a"),
        stored(book.tobytes(), "float32", 32, book.size, "b", cut=4000),
        stored(dense.tobytes(), "float32", 32, dense.size, "c", cut=4000),
        stored(np.full(100, np.nan, np.float32).tobytes(), "float32", 32, 100, "d"),
    ]
    file = TensorFile(kind="onnx", files=(), tensors=tuple(tensors))
    a, b, c = compare_models(file, file).levels
    assert list(a.counts) == np.bincount(ints.astype(np.int64) + 128, minlength=256).tolist()
    assert (a.positions[0], a.positions[-1], a.grid) == (-128, 127, f"{np.unique(ints).size} of 256 levels used")
    assert (b.positions, b.step) == ((-2.0, 0.0, 0.25, 7.0), 0.0)
    assert list(b.counts) == np.unique(book, return_counts=True)[1].tolist()
    counts, edges = np.histogram(dense, 64)
    assert list(c.counts) == counts.tolist()
    assert c.positions == pytest.approx((edges[:-1] + edges[1:]) / 2)


# What nobody should believe


def safetensors(path: Path, table: object, data: bytes = b"", *, length: int | None = None) -> str:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return str(path)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


@pytest.mark.parametrize(
    ("table", "data", "length", "got", "wanted"),
    [
        (b"", b"", None, "a header of 0 bytes", "whole safetensors"),
        (b"{}", b"", 1 << 60, "a header of 1,152,921,504,606,846,976 bytes", "whole safetensors"),
        (b"{nonsense", b"", None, "no JSON", "safetensors file"),
        (b"[" * 200_000, b"", None, "no JSON", "safetensors file"),
        ([], b"", None, "no JSON object", "safetensors file"),
        ({"a": 1}, b"", None, "dtype None", "one of F64"),
        ({"a": entry(dtype="F7")}, b"x" * 16, None, "dtype 'F7'", "one of F64"),
        ({"a": entry(shape=[-2, -2])}, b"x" * 16, None, "shape [-2, -2]", "whole numbers"),
        ({"a": entry(shape=[True, 4])}, b"x" * 16, None, "shape [True, 4]", "whole numbers"),
        ({"a": entry(shape=[1 << 40, 1 << 40])}, b"x" * 16, None, "data_offsets [0, 16]", "bytes for F32"),
        ({"a": entry(data_offsets=[16, 0])}, b"x" * 16, None, "data_offsets [16, 0]", "16 bytes"),
        ({"a": entry(data_offsets=[0])}, b"x" * 16, None, "data_offsets [0]", "16 bytes"),
        ({"a": entry(), "b": entry()}, b"x" * 16, None, "data at 0", "no overlap"),
        ({"a": entry(data_offsets=[4, 20])}, b"x" * 20, None, "data at 4", "no gap"),
        ({"a": entry()}, b"x" * 15, None, "bytes", "as its header says"),
        ({"a": entry()}, b"x" * 17, None, "bytes", "as its header says"),
    ],
)
def test_a_safetensors_header_that_lies(
    tmp_path: Path, refuses: Any, table: object, data: bytes, length: int | None, got: str, wanted: str
) -> None:
    path = safetensors(tmp_path / "model.safetensors", table, data, length=length)
    with refuses(BadInputError, where="model.safetensors", got=got, expected=wanted):
        dissect_model(path)


def test_shards_with_one_tensor_twice(tmp_path: Path, refuses: Any) -> None:
    for name in ("a", "b"):
        safetensors(tmp_path / f"model-{name}.safetensors", {"w": entry()}, b"x" * 16)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with refuses(BadInputError, where="model-b", got='second tensor "w"', expected="one file"):
        dissect_model(str(tmp_path))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, refuses: Any) -> None:
    path = Path(safetensors(tmp_path / "model.safetensors", {"w": entry()}, b"x" * 16))
    (tensor,) = read_safetensors([path]).tensors
    path.write_bytes(path.read_bytes()[:-3])
    with refuses(BadInputError, where="model.safetensors", got="3 bytes too early", expected="stays"):
        measure_values(tensor)


def test_external_data_must_lie_in_the_folder(mlp_external: Path, tmp_path: Path, refuses: Any) -> None:
    model = onnx.load(mlp_external, load_external_data=False)
    (tmp_path / "mlp.data").write_bytes((mlp_external.parent / "mlp.data").read_bytes())
    folder = tmp_path / "inner"
    folder.mkdir()
    for tensor in model.graph.initializer:
        next(item for item in tensor.external_data if item.key == "location").value = "../mlp.data"
    onnx.save(model, folder / "m.onnx")
    with refuses(BadInputError, where="m.onnx", got="../mlp.data", expected="inside the model's folder"):
        dissect_model(str(folder / "m.onnx"))


@pytest.mark.parametrize("dims", [[1 << 40, 1 << 20], [3, 3], [-4, 4]])
def test_an_absurd_shape_costs_nothing(mlp_onnx: Path, tmp_path: Path, dims: list[int]) -> None:
    model = onnx.load(mlp_onnx)
    model.graph.initializer[0].dims[:] = dims
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match=r"m\.onnx"):
        read_onnx(tmp_path / "m.onnx")


def test_no_packages(pack: Pack, tmp_path: Path, refuses: Any) -> None:
    path = pack()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(path.read_bytes()[:-400])
    with refuses(BadInputError, where="cut.tar.gz", got="unpacked", hint="whole"):
        dissect_model(str(cut))
    slip = tmp_path / "slip.aar"
    with zipfile.ZipFile(slip, "w") as archive:
        archive.writestr("assets/edgeslim/x/../../../../evil", b"x")
    with refuses(BadInputError, where="slip.aar", got="evil", expected="relative path"):
        dissect_model(str(slip))
    assert not list(tmp_path.rglob("evil"))
    with refuses(BadInputError, where="gone.aar", got="no such file", expected="package"):
        dissect_model(str(tmp_path / "gone.aar"))


def test_a_container_that_promises_more_than_the_disk_has(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    path = pack()
    monkeypatch.setattr("edgeslim.tensor_files.MAX_DECODED_BYTES", 1000)
    with refuses(BadInputError, where="mlp.tar.gz: weights.esz", got="weights of", expected="at most 1,000"):
        dissect_model(str(path))


def test_no_models(tmp_path: Path, refuses: Any) -> None:
    with refuses(BadInputError, where="gone.onnx", got="no such model", expected="Hugging Face"):
        dissect_model(str(tmp_path / "gone.onnx"))
    with refuses(BadInputError, where="my_net:make", got="own code", hint="inspect the package"):
        dissect_model("my_net:make")
    with refuses(MissingToolError, where="pkg://", got="no Python package", hint="pip install"):
        dissect_model("pkg://no_such_package/model")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with refuses(BadInputError, where=str(tmp_path), got="pickle", expected="safetensors"):
        dissect_model(str(tmp_path))
