"""What a newcomer may get wrong: one table of what is there, what is asked for, and what is said about it.

Each case ends with its exit code and an error that says what was found and how to go on; nothing is written.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim import cli, final_checks

BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n'
OWN = "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): return x * 2\n"

Make = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``arguments`` of ``edgeslim build`` in a folder that ``make`` prepared; the words that must be said."""

    arguments: str
    says: str
    helps: str
    code: int = 3
    make: Make = lambda folder: None


def text(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def project(content: str) -> Make:
    return text("edgeslim.toml", 'model = "mlp.onnx"\ntarget = "android-arm64"\n' + content)


def steps(content: str) -> Make:
    return text("r.toml", "[[steps]]\n" + content)


def board(content: str) -> Make:
    return text("b.toml", BOARD + content)


def module(body: str) -> Make:
    return text("bad_net.py", OWN + body)


def arrays(**values: Any) -> Make:
    return lambda folder: np.savez(folder / "d.npz", **values)


def cut(folder: Path) -> None:
    content = (folder / "mlp.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[:-100])


def weights(value: float) -> Make:
    def make(folder: Path) -> None:
        model = onnx.load(folder / "mlp.onnx")
        tensor = model.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[3] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, folder / "m.onnx")

    return make


def operator(op_type: str, domain: str = "", opset: int = 17) -> Make:
    """A model of one operator on float32 ``x [N, 16]``."""

    def make(folder: Path) -> None:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in "xy"]
        node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
        opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
        graph = helper.make_graph([node], "one", values[:1], values[1:])
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "m.onnx")

    return make


def spoilt(name: str, **values: Any) -> Make:
    """The classifier in ``bad``, with other values in its config; ``name`` is a file that goes."""

    def make(folder: Path) -> None:
        shutil.copytree(folder / "classifier", folder / "bad")
        (folder / "bad" / name).unlink(missing_ok=True)
        if values:
            config = json.loads((folder / "bad" / "config.json").read_text(encoding="utf-8"))
            (folder / "bad" / "config.json").write_text(json.dumps(config | values), encoding="utf-8")

    return make


def without_tokenizer(folder: Path) -> None:
    shutil.copytree(folder / "classifier", folder / "bad")
    for path in (folder / "bad").glob("*token*"):
        path.unlink()


MLP = "mlp.onnx --target android-arm64 "
DATA = MLP + "--data data.npz "
CLASSIFIER = "classifier --target android-arm64 "
X = np.ones((20, 16), np.float32) * np.arange(20, dtype=np.float32)[:, None]
KINDS = "expected: a Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable"
TWO = '[data]\ncalibration = "data.npz"\n'

CASES: dict[str, Case] = {
    # The command line
    "no model": Case(arguments="--target android-arm64", code=2, says="build: no model", helps="edgeslim build MODEL"),
    "no target": Case(
        arguments="mlp.onnx", code=2,
        says="build: no target", helps="--target with one of android-arm64",
    ),
    "unknown target": Case(
        arguments="mlp.onnx --target androd-arm64", code=2, says='no target "androd-arm64"',
        helps='hint: did you mean "android-arm64"?',
    ),
    "no profile": Case(arguments="mlp.onnx --target b.toml", code=2, says="no file b.toml", helps="target profile"),
    "unknown task": Case(
        arguments=DATA + "--task text-clasification", code=2, says='"text-clasification"',
        helps='hint: did you mean "text-classification"?',
    ),
    "no size": Case(arguments=DATA + "--max-size furlong", says="--max-size: 'furlong'", helps="a size such as 21.5MB"),
    "no duration": Case(arguments=DATA + "--max-latency soon", says="--max-latency: 'soon'", helps="such as 40ms"),
    # The model
    "no file": Case(arguments="gone.onnx --target android-arm64", says="gone.onnx: no such model", helps=KINDS),
    "near miss": Case(
        arguments="mpl.onnx --target android-arm64", says="no such model", helps='hint: did you mean "mlp.onnx"?'
    ),
    "cut": Case(
        arguments="cut.onnx --target android-arm64 --data data.npz", make=cut, says="not a whole ONNX model",
        helps="hint: was the download cut short?",
    ),
    "empty model": Case(
        arguments="m.onnx --target android-arm64 --data data.npz", make=text("m.onnx", b""), says="m.onnx: ",
        helps="expected: an ONNX",
    ),
    "another kind": Case(
        arguments="m.tflite --target android-arm64", make=text("m.tflite", b"x"), says="a file ending in .tflite",
        helps="or an .onnx file",
    ),
    "an empty folder": Case(
        arguments="new --target android-arm64", make=lambda f: (f / "new").mkdir(), says="a folder without config.json",
        helps="config.json, model.safetensors",
    ),
    "a pickle": Case(
        arguments="bad --target android-arm64",
        make=lambda f: (spoilt("model.safetensors")(f), text("bad/pytorch_model.bin", b"x")(f)),
        says="no safetensors, only the pickle pytorch_model.bin", helps="hint: a pickle runs code when it is read",
    ),
    "NaN weights": Case(
        arguments="m.onnx --target android-arm64 --data data.npz", make=weights(float("nan")),
        says="1 of 1,536 weights are NaN or infinite", helps="expected: finite weights",
    ),
    "infinite weights": Case(
        arguments="m.onnx --target android-arm64 --data data.npz", make=weights(float("inf")),
        says="1 of 1,536 weights are NaN or infinite", helps="expected: finite weights",
    ),
    "unknown operator": Case(
        arguments="m.onnx --target android-arm64 --data data.npz", make=operator("Levitate", "mine"),
        says="can't open it", helps="whose operators this ONNX Runtime has",
    ),
    "unsupported by the target": Case(
        arguments="mlp.onnx --target b.toml --data data.npz", code=6, make=board("[runtime]\nopset_max = 9\n"),
        says="operators.opset: the graph needs opset 17", helps="expected: at most 9",
    ),
    "larger than the target's memory": Case(
        arguments="mlp.onnx --target b.toml --data data.npz", code=4, make=board("[machine]\nmemory_bytes = 4096\n"),
        says="size.loaded_bytes", helps="hint: no package was written",
    ),
    "not on the hub": Case(
        arguments="owner/model --target android-arm64", says="no such folder, and the hub didn't give it",
        helps="hint: without a network only models in the hub's local cache",
    ),
    "no package": Case(
        arguments="pkg://no_such_package/m --target android-arm64", code=5,
        says='no Python package "no_such_package" is installed', helps="hint: pip install no-such-package",
    ),
    "not in the package": Case(
        arguments="pkg://onnx/gone --target android-arm64", says='the package has no "gone"',
        helps="a folder or file inside the package",
    ),
    "no module": Case(
        arguments="no_such_module:make --target android-arm64", says="No module named 'no_such_module'",
        helps="a callable without arguments that returns",
    ),
    "a module that fails": Case(
        arguments="bad_net:make --target android-arm64", make=module("import no_such_thing\n"),
        says="No module named 'no_such_thing'", helps="a callable without arguments that returns",
    ),
    "a module without it": Case(
        arguments="bad_net:mkae --target android-arm64", make=module("def make(): ...\n"),
        says="AttributeError", helps="a callable without arguments",
    ),
    "a module that returns junk": Case(
        arguments="bad_net:make --target android-arm64", make=module("def make(): return 3\n"), says="returned int",
        helps="(nn.Module, example inputs)",
    ),
    "no class head": Case(
        arguments="bad --target android-arm64 --task text-classification --data texts.csv",
        make=spoilt("none", architectures=["BertModel"]), says="BertModel has no classification head",
        helps="hint: --task feature-extraction",
    ),
    "weights that are missing": Case(
        arguments="bad --target android-arm64 --data texts.csv", make=spoilt("none", num_hidden_layers=3),
        says="the checkpoint lacks 16 weights", helps="all weights of BertForSequenceClassification",
    ),
    "no tokenizer": Case(
        arguments="bad --target android-arm64 --data texts.csv", make=without_tokenizer, says="no tokenizer",
        helps="hint: for a text model, put tokenizer.json beside it",
    ),
    "no tokenizer there": Case(
        arguments="", make=project('tokenizer = "nowhere"\n'), says="no tokenizer in nowhere",
        helps="a folder with tokenizer.json",
    ),
    # The project file, recipes, profiles
    "not TOML": Case(arguments="", make=project("seed 3\n"), says="not valid TOML", helps="TOML: key = value"),
    "not UTF-8": Case(
        arguments="", make=text("edgeslim.toml", b'model = "\xff"'), says="byte 9 is not UTF-8", helps="in UTF-8"
    ),
    "unknown key": Case(
        arguments="", make=project('recipie = "r.toml"\n'), says='edgeslim.toml: unknown key "recipie"',
        helps='hint: did you mean "recipe"?',
    ),
    "unknown table": Case(
        arguments="", make=project("[budgets]\nmax_drop = 1\n"), says='unknown key "budgets"',
        helps='hint: did you mean "budget"?',
    ),
    "unknown data key": Case(
        arguments="", make=project('[data]\nflie = "d.npz"\n'), says='edgeslim.toml: data: unknown key "flie"',
        helps='hint: did you mean "file"?',
    ),
    "a string for a number": Case(
        arguments="", make=project('seed = "3"\n'), says="edgeslim.toml: seed: '3' (str)", helps="a whole number"
    ),
    "a number for a string": Case(
        arguments="", make=project("[budget]\nmax_size = 3\n"), says="budget: max_size: 3 (int)", helps="a string"
    ),
    "negative drop": Case(
        arguments="", make=project("[budget]\nmax_drop = -0.1\n"), says="budget: max_drop: -0.1", helps="0 or more"
    ),
    "a drop that is no number": Case(
        arguments="", make=project("[budget]\nmax_drop = nan\n"), says="budget: max_drop: nan", helps="0 or more"
    ),
    "no size there": Case(
        arguments="", make=project('[budget]\nmax_size = "big"\n'),
        says="budget.max_size: 'big'", helps="such as 21.5MB"
    ),
    "two kinds of data": Case(
        arguments="", make=project(TWO + 'evaluation = "e.npz"\nfile = "data.npz"\n'),
        says="file beside calibration or evaluation", helps="either one file or two",
    ),
    "half of the data": Case(arguments="", make=project(TWO), says="without evaluation", helps="one file to split"),
    "no length": Case(
        arguments="", make=project("[data]\nmax_length = 0\n"), says="data: max_length: 0", helps="at least 1"
    ),
    "no recipe": Case(
        arguments=DATA + "--recipe gone.toml",
        says="gone.toml: No such file", helps="a readable TOML file",
    ),
    "no steps": Case(
        arguments=DATA + "--recipe r.toml", make=text("r.toml", ""),
        says='no key "steps"', helps="a list",
    ),
    "unknown stage": Case(
        arguments=DATA + "--recipe r.toml", make=steps('use = "quantise_int8"\n'), says="use = 'quantise_int8'",
        helps='hint: did you mean "quantize_int8"?',
    ),
    "a step without a stage": Case(
        arguments=DATA + "--recipe r.toml", make=steps('method = "mse"\n'), says='steps[0]: no key "use"',
        helps="expected: one of ",
    ),
    "unknown setting": Case(
        arguments=DATA + "--recipe r.toml", make=steps('use = "quantize_int8"\nmethd = "mse"\n'),
        says='steps[0] (quantize_int8): unknown key "methd"', helps='hint: did you mean "method"?',
    ),
    "unknown value": Case(
        arguments=DATA + "--recipe r.toml", make=steps('use = "quantize_int8"\nmethod = "minmix"\n'),
        says="method: 'minmix'", helps='hint: did you mean "minmax"?',
    ),
    "bad percentile": Case(
        arguments=DATA + "--recipe r.toml", make=steps('use = "quantize_int8"\npercentile = 120.0\n'),
        says="percentile", helps="expected: ",
    ),
    "a profile that is no TOML": Case(
        arguments="mlp.onnx --target b.toml", make=text("b.toml", "name board\n"), says="b.toml: not valid TOML",
        helps="key = value",
    ),
    "a profile without a machine": Case(
        arguments="mlp.onnx --target b.toml", make=text("b.toml", 'name = "b"\nsummary = "b"\n'),
        says='b.toml: no key "machine"', helps="expected: a table",
    ),
    "a profile of nobody": Case(
        arguments="mlp.onnx --target b.toml", make=text("b.toml", 'extends = "androd-arm64"\n'),
        says='b.toml: extends = "androd-arm64": no target', helps='hint: did you mean "android-arm64"?',
    ),
    "a profile of itself": Case(
        arguments="mlp.onnx --target b.toml", make=text("b.toml", 'extends = "b.toml"\n'), says="extends = 'b.toml'",
        helps="at most 4 deep",
    ),
    "a profile with another unit": Case(
        arguments="mlp.onnx --target b.toml", make=board('[machine]\nmemory_bytes = "4GB"\n'),
        says="machine: memory_bytes: '4GB' (str)", helps="a whole number",
    ),
    "a budget below zero": Case(
        arguments="mlp.onnx --target b.toml", make=board("[budget]\nmax_size_bytes = -1\n"),
        says="max_size_bytes: -1", helps="0 or more",
    ),
    # Data
    "no data": Case(
        arguments=MLP,
        says="no samples, and the model has no tokenizer", helps="an .npz file with one array",
    ),
    "no data file": Case(arguments=MLP + "--data gone.npz", says="gone.npz: no such file", helps="an .npz file"),
    "text for arrays": Case(
        arguments=MLP + "--data texts.csv",
        says="no tokenizer", helps="an .npz file with one array",
    ),
    "another input": Case(
        arguments=MLP + "--data d.npz", make=arrays(y=X), says='no array for the model input "x"',
        helps="one array a model input: x",
    ),
    "one input more": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=X, z=X), says='an array "z" that the model has no input for',
        helps="one array a model input: x",
    ),
    "another type": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=X.astype(np.float64)),
        says="float64", helps="float32",
    ),
    "another shape": Case(arguments=MLP + "--data d.npz", make=arrays(x=X[:, :8]), says="8", helps="16"),
    "different lengths": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=X, z=X[:3]), says="arrays of different lengths: x 20, z 3",
        helps="the same number of samples",
    ),
    "no number": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=np.where(X == 7, np.nan, X).astype(np.float32)),
        says="d.npz: x: NaN in 1 of 20 samples", helps="expected: finite values"
    ),
    "pickled arrays": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=np.array([{}], object)), says="can't be read",
        helps="hint: numpy.savez",
    ),
    "one sample": Case(
        arguments=MLP + "--data d.npz", make=arrays(x=X[:1]),
        says="1 different samples", helps="give more data",
    ),
    "the same twice": Case(
        arguments="", make=project(TWO + 'evaluation = "data.npz"\n'), says="60 samples stand in both",
        helps="hint: `file` instead of two files is split without overlap",
    ),
    "an empty text": Case(
        arguments=CLASSIFIER + "--data d.txt", make=text("d.txt", ""),
        says="d.txt: no rows", helps="one sample",
    ),
    "not UTF-8 text": Case(
        arguments=CLASSIFIER + "--data d.txt", make=text("d.txt", b"caf\xe9\n" * 9),
        says="not UTF-8 text", helps="in UTF-8"
    ),
    "no text column": Case(
        arguments=CLASSIFIER + "--data d.csv", make=text("d.csv", "body,label\na,good\n"),
        says='no text column among "body", "label"', helps='text_column = "body"',
    ),
    "a broken row": Case(
        arguments=CLASSIFIER + "--data d.csv", make=text("d.csv", "text,label\na,good\nb,bad,more\n"), says="d.csv: ",
        helps="a readable .csv file",
    ),
    "a broken line": Case(
        arguments=CLASSIFIER + "--data d.jsonl", make=text("d.jsonl", '{"text": "a"}\n{"text": \n'), says="d.jsonl: ",
        helps="a readable .jsonl file",
    ),
    "a row without label": Case(
        arguments=CLASSIFIER + "--data d.csv", make=text("d.csv", "text,label\na,good\nb,\nc,bad\n"),
        says="row 2, label: no label", helps='hint: label_column = ""',
    ),
    "unknown label": Case(
        arguments=CLASSIFIER + "--data d.csv",
        make=text("d.csv", "text,label\n" + "".join(f"{n},godd\n" for n in range(9))),
        says='unknown label "godd"', helps='hint: did you mean "good"?',
    ),
    "another kind of data": Case(
        arguments=CLASSIFIER + "--data d.xlsx", make=text("d.xlsx", "x"), says='unknown kind of file ".xlsx"',
        helps=".csv",
    ),
    # Metrics of one's own
    "a metric that isn't there": Case(
        arguments=DATA + "--task no_such_module:metric", says="no_such_module:metric", helps="expected: "
    ),
    "a metric that raises": Case(
        arguments=DATA + "--task bad_net:metric", make=module("def metric(a, b, c): return 1 / 0\n"),
        says="it raised ZeroDivisionError", helps="expected: figures by name",
    ),
    "a metric that returns words": Case(
        arguments=DATA + "--task bad_net:metric", make=module('def metric(a, b, c): return "fine"\n'), says="fine",
        helps="expected: ",
    ),
    "a metric without a drop": Case(
        arguments=DATA + "--task bad_net:metric", make=module('def metric(a, b, c): return {"x": 1.0}\n'), says="drop",
        helps="expected: ",
    ),
    "a metric that returns NaN": Case(
        arguments=DATA + "--task bad_net:metric", make=module('def metric(a, b, c): return float("nan")\n'), says="nan",
        helps="expected: ",
    ),
    # Where it goes
    "a file for an output": Case(
        arguments=DATA + "-o data.npz", says="data.npz: a file", helps="a folder for the build's output"
    ),
    "an output below a file": Case(
        arguments=DATA + "-o data.npz/out", says="can't write here", helps="a folder that can be written"
    ),
    "an output that can't be": Case(
        arguments=DATA + "-o /proc/nowhere/out", says="can't write here", helps="a folder that can be written"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, mlp_onnx: Path, mlp_samples: Path, tiny_classifier: Path, text_files: Any
) -> Path:
    folder = tmp_path_factory.mktemp("template") / "work"
    shutil.copytree(tiny_classifier, folder / "classifier")
    for source, name in ((mlp_onnx, "mlp.onnx"), (mlp_samples, "data.npz"), (text_files.csv, "texts.csv")):
        shutil.copy(source, folder / name)
    return folder


def files(folder: Path) -> dict[str, int]:
    """All below ``folder``, files with the time of their last change."""
    return {str(path): path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(
    case: Case, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(template, tmp_path / "work"))
    case.make(folder)
    before = files(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "bad_net", raising=False)
    monkeypatch.setattr(sys, "argv", ["edgeslim", "build", *case.arguments.split(), "-q"])
    monkeypatch.setattr(final_checks, "check_latency", lambda *arguments, **options: iter(()))
    code = cli.run()
    out, err = capfd.readouterr()
    assert code == case.code, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert case.says in err
    assert case.helps in err
    assert "expected: " in err or "hint: " in err
    assert files(tmp_path) == before


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
