"""Models and data from strangers: what leaves its folder, promises more than there is, or nests without end."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeslim import cli


@pytest.fixture
def folder(tmp_path: Path, mlp_external: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the perceptron and its external weights; above it lies what nobody may read."""
    path = tmp_path / "work"
    path.mkdir()
    for file in mlp_external.parent.iterdir():
        shutil.copy(file, path)
    shutil.copy(mlp_samples, path / "data.npz")
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A build that must end with 3, say what it should, and leave nothing."""

    def run(*arguments: str) -> str:
        before = sorted(folder.parent.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["edgeslim", "build", *arguments, "--target", "android-arm64", "-q"])
        code = cli.run()
        written = capsys.readouterr()
        assert code == 3, written.err
        assert written.out == ""
        assert written.err.startswith("error: ")
        assert "Traceback" not in written.err
        assert sorted(folder.parent.rglob("*")) == before
        return written.err

    return run


def edit_external(**values: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "mlp-external.onnx"
        model = onnx.load(path, load_external_data=False)
        tensor = model.graph.initializer[0]
        entries = {item.key: item.value for item in tensor.external_data} | values
        del tensor.external_data[:]
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())

    return spoil


def edit_shape(*dims: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "mlp-external.onnx"
        model = onnx.load(path, load_external_data=False)
        tensor = model.graph.initializer[0]
        tensor.dims[:] = dims
        path.write_bytes(model.SerializeToString())

    return spoil


def inline_shape(*dims: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "mlp-external.onnx"
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        tensor.dims[:] = dims
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        path.write_bytes(model.SerializeToString())

    return spoil


def link_outside(folder: Path) -> None:
    (folder / "mlp.data").unlink()
    (folder / "mlp.data").symlink_to(folder.parent / "secret.bin")


def external_attribute(folder: Path) -> None:
    """A Constant in the branch of an If: no initializer, and yet external data."""
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    path = folder / "mlp-external.onnx"
    model = onnx.load(path)
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    made = helper.make_tensor_value_info("k", TensorProto.FLOAT, [16])
    branch = helper.make_graph([constant], "branch", [], [made])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    path.write_bytes(model.SerializeToString())


def nest(folder: Path) -> None:
    """Bytes of a graph in an attribute of a node of a graph, a thousand times."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(1000):
        graph = field(1, field(5, field(6, graph)))
    (folder / "mlp-external.onnx").write_bytes(field(7, graph))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "above": (edit_external(location="../secret.bin"), "external data at ../secret.bin"),
    "absolute": (edit_external(location="/etc/hostname"), "external data at /etc/hostname"),
    "around a corner": (edit_external(location="x/../../secret.bin"), "external data at x/../../secret.bin"),
    "a link that leaves": (link_outside, "external data at mlp.data"),
    "in a branch": (external_attribute, "external data at ../secret.bin"),
    "a folder": (edit_external(location="."), "external data . isn't there"),
    "no file": (edit_external(location="gone.data"), "external data gone.data isn't there"),
    "offset beyond the file": (edit_external(offset="99999999"), "at 99,999,999 of a file of"),
    "negative offset": (edit_external(offset="-64"), "not a whole ONNX model: "),
    "no number": (edit_external(offset="many"), "not a whole ONNX model"),
    "length beyond the file": (edit_external(length=str(1 << 62)), "bytes at"),
    "length beyond the tensor": (edit_external(offset="0", length="6145"), "6,145 bytes at 0"),
    "shape beyond the file": (edit_shape(1 << 20, 1 << 20), "bytes at"),
    "shape that overflows": (edit_shape(1 << 40, 1 << 40, 1 << 40), "bytes at"),
    "negative shape": (edit_shape(-16, 96), ""),
    "inline shape beyond the data": (inline_shape(1 << 20, 1 << 20), ""),
    "inline shape that overflows": (inline_shape(1 << 33, 1 << 33), ""),
    "inline negative shape": (inline_shape(-16, 96), ""),
    "cut": (lambda f: cut(f / "mlp-external.onnx"), "not a whole ONNX model"),
    "empty": (lambda f: (f / "mlp-external.onnx").write_bytes(b""), ""),
    "text": (lambda f: (f / "mlp-external.onnx").write_bytes(b"<html>Not found</html>" * 50), ""),
    "nested": (nest, "not a whole ONNX model"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(("spoil", "said"), MODELS.values(), ids=MODELS)
def test_onnx_models(folder: Path, refused: Callable[..., str], spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    error = refused("mlp-external.onnx", "--data", "data.npz")
    assert said in error
    assert "expected: " in error


@pytest.fixture
def bert(folder: Path, tiny_bert: Path, text_files: Any) -> Path:
    shutil.copy(text_files.txt, folder / "texts.txt")
    return Path(shutil.copytree(tiny_bert, folder / "bert"))


DEEP = b'{"a": ' * 50_000 + b"1" + b"}" * 50_000
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle alone": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only the pickle"),
    "a deep config": (lambda f: (f / "config.json").write_bytes(DEEP), "config.json: not valid JSON"),
    "a huge config": (lambda f: (f / "config.json").write_bytes(b" " * (5 << 20)), "5,242,880 bytes"),
    "a deep tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(DEEP), "its tokenizer doesn't load"),
    "a deep tokenizer_config": (lambda f: (f / "tokenizer_config.json").write_bytes(DEEP), "tokenizer doesn't load"),
    "a huge tokenizer": (lambda f: huge(f / "tokenizer.json"), "its tokenizer doesn't load"),
    "a cut tokenizer": (lambda f: cut(f / "tokenizer.json"), "its tokenizer doesn't load"),
    "a deep modules.json": (lambda f: (f / "modules.json").write_bytes(DEEP), "modules.json"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "transformers can't load it"),
    "a header without end": (
        lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
        "transformers can't load it",
    ),
    "a layer too many": (lambda f: configure(f, num_hidden_layers=10), "the checkpoint lacks"),
    "sizes that don't fit": (lambda f: configure(f, hidden_size=64), ""),
    "sizes that fit nowhere": (lambda f: configure(f, vocab_size=1 << 50), ""),
    "another class": (lambda f: configure(f, model_type="../../etc/passwd"), "transformers can't load it"),
    "code of its own": (
        lambda f: configure(f, model_type="own", auto_map={"AutoModel": "evil.M"}),
        "transformers can't load it",
    ),
}  # fmt: skip


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(64 << 20)  # sparse: it takes no room


@pytest.mark.parametrize(("spoil", "said"), FOLDERS.values(), ids=FOLDERS)
def test_hugging_face_folders(
    bert: Path, refused: Callable[..., str], spoil: Callable[[Path], object], said: str
) -> None:
    spoil(bert)
    error = refused("bert", "--data", "texts.txt")
    assert said in error
    assert "expected: " in error


def promise(path: Path, header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 16), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 16), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 16), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
        "__import__('os').system('touch ran')",
    ],
    ids=["huge", "more", "negative", "objects", "code"],
)
def test_arrays_that_promise_more_than_there_is(folder: Path, refused: Callable[..., str], header: str) -> None:
    promise(folder / "data.npz", header)
    assert "data.npz" in refused("mlp-external.onnx", "--data", "data.npz")


def test_a_pickle_that_calls_itself_arrays(folder: Path, refused: Callable[..., str]) -> None:
    np.savez(folder / "data.npz", x=np.array([{"a": 1}], dtype=object))
    assert "can't be read" in refused("mlp-external.onnx", "--data", "data.npz")
