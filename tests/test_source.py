from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.errors import BadInputError, MissingToolError
from edgeslim.source import MAX_JSON_BYTES, Source, load_huggingface, load_own, resolve_source

KINDS = "a Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a Hugging Face folder, as far as resolving looks."""
    path = tmp_path / "models" / "My_Model v2"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (path / "model.safetensors").touch()
    return path


@pytest.fixture
def package(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that carries the model; importing it is a mistake."""
    root = tmp_path / "site" / "carrier"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    folder.rename(root / "inner")
    (root / "mlp.onnx").touch()
    (root.parent / "secret.onnx").touch()
    monkeypatch.syspath_prepend(str(root.parent))
    return "carrier"


def test_a_hugging_face_folder(tiny_bert: Path) -> None:
    source = resolve_source(str(tiny_bert))
    assert (source.kind, source.name, source.path) == ("huggingface", "tiny-bert", tiny_bert)
    assert source.tokenizer == tiny_bert
    assert source.config["model_type"] == "bert"
    assert (source.licence, source.licence_file) == ("apache-2.0", tiny_bert / "LICENSE")


def test_relative_paths_start_at_the_base(folder: Path) -> None:
    source = resolve_source(folder.name, base=folder.parent)
    assert (source.kind, source.path, source.name) == ("huggingface", folder.resolve(), "my-model-v2")
    assert (source.tokenizer, source.licence, source.licence_file) == (None, None, None)


def test_names_are_made_fit_for_files_and_coordinates(folder: Path) -> None:
    names = {"My Model": "my-model", "ä": "model", "--x__y.z--": "x-y-z", "Ünïcode3": "n-code3"}
    assert {name: resolve_source(str(folder), name=name).name for name in names} == names


def test_an_onnx_file_with_what_lies_beside_it(mlp_onnx: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "Net.v1.onnx"
    path.write_bytes(mlp_onnx.read_bytes())
    source = resolve_source("Net.v1.onnx", base=tmp_path)
    assert (source.kind, source.name, source.path, source.tokenizer) == ("onnx", "net-v1", path, None)
    assert source.config == {}
    (tmp_path / "config.json").write_text('{"label2id": {"no": 0}}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    source = resolve_source("Net.v1.onnx", base=tmp_path)
    assert source.tokenizer == tmp_path
    assert source.config == {"label2id": {"no": 0}}


def test_a_tokenizer_from_elsewhere(folder: Path, tiny_tokenizer: Path) -> None:
    assert resolve_source(str(folder), tokenizer=str(tiny_tokenizer)).tokenizer == tiny_tokenizer
    beside = resolve_source("own:make", base=tiny_tokenizer.parent, tokenizer=tiny_tokenizer.name)
    assert beside.tokenizer == tiny_tokenizer


def test_own_code(tmp_path: Path) -> None:
    source = resolve_source("pkg.own_net:Make_it", base=tmp_path)
    assert (source.kind, source.spec, source.name) == ("module", "pkg.own_net:Make_it", "make-it")
    assert source.path == tmp_path
    assert resolve_source("own:make", name="Net").name == "net"


def test_a_package_is_found_without_importing_it(package: str) -> None:
    source = resolve_source(f"pkg://{package}/inner")
    assert (source.kind, source.name, source.spec) == ("huggingface", "inner", "pkg://carrier/inner")
    assert resolve_source("pkg://carrier/mlp.onnx").kind == "onnx"
    assert "carrier" not in sys.modules


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\ntags: x\nlicense:   cc-by-nc-4.0  \n---\n", "cc-by-nc-4.0"),
        ("# Model\nlicense: apache-2.0\n", "apache-2.0"),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("The license: is free.\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_model_card(folder: Path, card: str, licence: str | None) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    assert resolve_source(str(folder)).licence == licence


@pytest.mark.parametrize(
    ("model", "got", "hint"),
    [
        ("My_Model v3", "no such model", 'did you mean "My_Model v2"?'),
        ("gone.onnx", "no such model", "relative paths start at the project file's folder"),
        ("a/gone.onnx", "no such model", "relative paths"),
        ("a/b/c", "no such model", "relative paths"),
        ("has spaces:make", "no such model", "relative paths"),
        ("own:make()", "no such model", "relative paths"),
        ("owner/model", "no such folder, and the hub didn't give it", "local cache"),
    ],
)
def test_nothing_there(folder: Path, model: str, got: str, hint: str, refuses: Any) -> None:
    with refuses(BadInputError, where=model, got=got, expected=KINDS, hint=hint):
        resolve_source(model, base=folder.parent)


def break_config(text: bytes) -> Any:
    return lambda folder: (folder / "config.json").write_bytes(text)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "where", "got", "expected", "hint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "", "a folder without config.json", "config.json", ""),
        (lambda folder: (folder / "model.safetensors").unlink(), "", "no safetensors", "model.safetensors", ""),
        (pickled, "", "only the pickle pytorch_model.bin", "model.safetensors", "a pickle runs code"),
        (break_config(b"{"), "/config.json", "not valid JSON", "a JSON object", ""),
        (break_config(b"[1]"), "/config.json", "a JSON list", "a JSON object", ""),
        (break_config(b'{"a": "\xff"}'), "/config.json", "not valid JSON", "a JSON object", ""),
        (break_config(b"[" * 100_000), "/config.json", "not valid JSON", "a JSON object", ""),
        (break_config(b" " * (MAX_JSON_BYTES + 1)), "/config.json", "4,194,305 bytes", "at most 4,194,304", ""),
    ],
    ids=["no-config", "no-weights", "pickle", "cut", "list", "bytes", "deep", "large"],
)
def test_spoilt_folders(folder: Path, spoil: Any, where: str, got: str, expected: str, hint: str, refuses: Any) -> None:
    spoil(folder)
    with refuses(BadInputError, where=f"{folder}{where}", got=got, expected=expected, hint=hint):
        resolve_source(str(folder))


@pytest.mark.parametrize(("name", "kind"), [("model.tflite", ".tflite"), ("model", "nothing")])
def test_files_of_another_kind(tmp_path: Path, name: str, kind: str, refuses: Any) -> None:
    (tmp_path / name).touch()
    with refuses(BadInputError, where=name, got=f"a file ending in {kind}", expected="an .onnx file"):
        resolve_source(name, base=tmp_path)


@pytest.mark.parametrize("model", ["folder", "own:make"])
def test_a_tokenizer_that_is_not_there(folder: Path, model: str, refuses: Any) -> None:
    spec = str(folder) if model == "folder" else model
    with refuses(BadInputError, where=spec, got="no tokenizer in", expected="tokenizer.json"):
        resolve_source(spec, tokenizer=str(folder))


@pytest.mark.parametrize("spec", ["pkg://no_such_package/x", "pkg://", "pkg://a.b/x", "pkg:///etc/x"])
def test_packages_that_are_not_installed(spec: str, refuses: Any) -> None:
    with refuses(MissingToolError, where=spec, got="no Python package", expected="installed", hint="pip install"):
        resolve_source(spec)


@pytest.mark.parametrize("inner", ["gone", "../secret.onnx", "inner/../../secret.onnx"])
def test_packages_without_that_model(package: str, inner: str, refuses: Any) -> None:
    with refuses(BadInputError, where=inner, got=f'the package has no "{inner}"', expected="inside the package"):
        resolve_source(f"pkg://{package}/{inner}")


def test_load_huggingface(tiny_bert: Path, tiny_classifier: Path) -> None:
    encoder = load_huggingface(resolve_source(str(tiny_bert)), classifier=False)
    assert type(encoder).__name__ == "BertModel"
    assert not encoder.training
    assert {str(value.dtype) for value in encoder.parameters()} == {"torch.float32"}
    classifier = load_huggingface(resolve_source(str(tiny_classifier)), classifier=True)
    assert type(classifier).__name__ == "BertForSequenceClassification"


def test_loading_says_nothing_of_a_pooler_that_nobody_reads(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    level = transformers.utils.logging.get_verbosity()
    load_huggingface(resolve_source(str(tiny_bert)), classifier=False)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == level


@pytest.mark.parametrize(
    "spoil",
    [
        break_config(b'{"model_type": "no_such_architecture"}'),
        break_config(b"{}"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"),
        lambda folder: (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
    ],
    ids=["unknown", "empty", "cut", "header"],
)
def test_what_transformers_cannot_load(tiny_bert: Path, tmp_path: Path, spoil: Any, refuses: Any) -> None:
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with refuses(BadInputError, where=str(tmp_path), got="transformers can't load it", expected="config.json"):
        load_huggingface(resolve_source(str(tmp_path)), classifier=False)


@pytest.mark.parametrize(
    ("classifier", "dropped", "got", "hint"),
    [
        (False, "encoder.layer.1.output.dense.weight", "lacks 1 weights", ""),
        (True, "", "lacks 2 weights, the first is classifier.bias", "feature-extraction"),
    ],
)
def test_weights_that_are_not_there(
    tiny_bert: Path, tmp_path: Path, classifier: bool, dropped: str, got: str, hint: str, refuses: Any
) -> None:
    """transformers only logs a warning and draws random numbers for them."""
    from safetensors.numpy import load_file, save_file

    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    if classifier:  # the pooler is there; the classifier on top of it isn't
        weights |= {"pooler.dense.weight": np.eye(32, dtype=np.float32), "pooler.dense.bias": np.zeros(32, np.float32)}
    save_file({name: value for name, value in weights.items() if name != dropped}, tmp_path / "model.safetensors")
    with refuses(BadInputError, where=str(tmp_path), got=got, expected="all weights of Bert", hint=hint):
        load_huggingface(resolve_source(str(tmp_path)), classifier=classifier)


def test_code_in_a_model_folder_is_never_run(tiny_bert: Path, tmp_path: Path, refuses: Any) -> None:
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    with refuses(BadInputError, where=str(tmp_path), got="transformers can't load it", expected="config.json"):
        load_huggingface(resolve_source(str(tmp_path)), classifier=False)
    assert not (tmp_path / "ran").exists()


def own(folder: Path, attribute: str) -> Source:
    return resolve_source(f"own_net:{attribute}", base=folder)


def test_load_own(own_module: Path) -> None:
    before = list(sys.path)
    made = load_own(own(own_module, "make"))
    assert list(made.inputs) == ["x"]
    assert tuple(made.inputs["x"].shape) == (1, 16)
    assert made.dynamic_shapes is None
    assert not made.module.training
    assert sys.path == before
    dynamic = load_own(own(own_module, "make_dynamic"))
    assert list(dynamic.dynamic_shapes or {}) == ["x"]


@pytest.mark.parametrize(
    ("body", "got", "expected"),
    [
        ("def make(: pass", "SyntaxError", "a callable without arguments"),
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'", "a callable"),
        ("def other(): pass", "AttributeError", "a callable"),
        ("make = 3", "TypeError", "a callable"),
        ("def make(size): pass", "TypeError", "a callable without arguments"),
        ("def make(): raise SystemExit('enough')", "SystemExit: enough", "a callable"),
        ("def make(): raise OSError('out of paper')", "OSError: out of paper", "a callable"),
        ("def make(): pass", "returned NoneType", "(nn.Module, example inputs)"),
        ("def make(): return nn.Linear(2, 2)", "returned Linear", "(nn.Module, example inputs)"),
        ("def make(): return 1, torch.ones(1)", "returned tuple", "(nn.Module, example inputs)"),
        ("def make(): return nn.Linear(2, 2), torch.ones(1), None, 4", "returned tuple", "dynamic shapes"),
        ("def make(): return nn.Linear(2, 2), [1.0]", "example inputs that aren't tensors", "a tensor"),
        ("def make(): return nn.Linear(2, 2), {}", "example inputs that aren't tensors", "a tensor"),
        ("def make(): return nn.Linear(2, 2), ()", "example inputs that aren't tensors", "a tensor"),
        ("def make(): return nn.Linear(2, 2), (torch.ones(2), torch.ones(2))", "2 example inputs", "at most 1"),
    ],
)
def test_own_code_that_does_not_fit(own_module: Path, body: str, got: str, expected: str, refuses: Any) -> None:
    (own_module / "own_net.py").write_text(f"import torch\nfrom torch import nn\n{body}\n", encoding="utf-8")
    before = list(sys.path)
    with refuses(BadInputError, where="own_net:make", got=got, expected=expected):
        load_own(own(own_module, "make"))
    assert sys.path == before


def test_own_code_that_is_not_there(tmp_path: Path, refuses: Any) -> None:
    with refuses(BadInputError, where="no_such_module:make", got="ModuleNotFoundError", expected="a callable"):
        load_own(resolve_source("no_such_module:make", base=tmp_path))
