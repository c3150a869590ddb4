"""What stops a build, and that nothing is left of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import listing, quick

import edgeslim
from edgeslim.core import Quiet
from edgeslim.errors import BadInputError, CheckError, EdgeslimError, MissingToolError, UsageError

# What stops a build


def spoilt_classifier(folder: Path, tiny_classifier: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_classifier, folder / "spoilt")
    weights = load_file(folder / "spoilt" / "model.safetensors")
    next(iter(weights.values())).flat[0] = np.nan
    save_file(weights, folder / "spoilt" / "model.safetensors", metadata={"format": "pt"})
    return folder / "spoilt"


class Stopping(Quiet):
    """Raises when the step that is named begins."""

    def __init__(self, step: str, error: BaseException) -> None:
        self._step = step
        self._error = error

    def step(self, what: str) -> None:
        if what == self._step:
            raise self._error


def test_files_that_are_no_models(failing: Path, tmp_path: Path, mlp_onnx: Path, mlp_samples: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(mlp_onnx.read_bytes()[:-100])
    for model, kind in [
        ("gone.onnx", BadInputError),
        (str(cut), BadInputError),
        (str(mlp_samples), BadInputError),
        ("pkg://no_such_package/model", MissingToolError),
        ("no_such_module:make", BadInputError),
    ]:
        with pytest.raises(kind) as caught:
            edgeslim.build(model, target="android-arm64", data=str(mlp_samples))
        assert caught.value.expected or caught.value.hint


@pytest.mark.parametrize("step", ["export", "quantize_int8", "encode", "package", "checks"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")], ids=["interrupt", "defect"])
def test_a_build_that_is_stopped(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, step: str, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), progress=Stopping(step, error))


def test_a_full_disk(failing: Path, mlp_onnx: Path, mlp_samples: Path, refuses: Any) -> None:
    full = Stopping("package", OSError(28, "No space left on device", "/somewhere/x"))
    with refuses(BadInputError, where="/somewhere/x", got="No space left on device", expected="room"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), progress=full)


def test_weights_that_are_not_finite(
    failing: Path, tmp_path: Path, tiny_classifier: Path, text_files: Any, refuses: Any
) -> None:
    model = spoilt_classifier(tmp_path, tiny_classifier)
    with refuses(BadInputError, where="tensor", got="weights are NaN or infinite", expected="finite", hint="sound"):
        edgeslim.build(str(model), target="android-arm64", data=str(text_files.csv))


def test_an_encoder_is_no_classifier(failing: Path, tiny_bert: Path, text_files: Any, refuses: Any) -> None:
    with refuses(
        BadInputError,
        where="Tiny_BERT",
        got="BertModel has no classification head",
        expected="sequence classification",
        hint="feature-extraction",
    ):
        edgeslim.build(str(tiny_bert), target="android-arm64", task="text-classification", data=str(text_files.csv))


@pytest.mark.parametrize(
    ("options", "kind", "where"),
    [
        ({"task": "text-clasification"}, UsageError, "task"),
        ({"task": "no_such_module:metric"}, BadInputError, "task no_such_module:metric"),
        ({"target": "toaster"}, UsageError, "--target"),
        ({"recipe": "gone.toml"}, BadInputError, "gone.toml"),
        ({"data": "gone.npz"}, BadInputError, "gone.npz"),
        ({"data": "gone.txt"}, BadInputError, "data"),
        ({"max_size": "1 furlong"}, BadInputError, "--max-size"),
        ({"max_latency": "soon"}, BadInputError, "--max-latency"),
    ],
    ids=lambda value: next(iter(value.items()))[1] if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, options: dict[str, str], kind: type[EdgeslimError], where: str,
    refuses: Any,
) -> None:  # fmt: skip
    given = {"target": "android-arm64", "data": str(mlp_samples)} | options
    with refuses(kind, where=where, got=""):
        edgeslim.build(str(mlp_onnx), **given)


def test_calibration_text_in_the_evaluation_data_is_refused(
    failing: Path, tmp_path: Path, tiny_bert: Path, refuses: Any
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one fine day\nanother day\n", encoding="utf-8")
    (folder / "b.txt").write_text("a poor day\nOne fine  day\n", encoding="utf-8")
    text = f'model = "{tiny_bert}"\ntarget = "android-arm64"\n[data]\ncalibration = "a.txt"\nevaluation = "b.txt"\n'
    (folder / "edgeslim.toml").write_text(text, encoding="utf-8")
    before = listing(folder)
    with refuses(BadInputError, where="a.txt, b.txt", got="1 texts stand in both", expected="share nothing"):
        edgeslim.build(folder=folder)
    assert listing(folder) == before


def test_a_metric_of_ones_own_that_raises(
    failing: Path, own_module: Path, mlp_onnx: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_module / "own_net.py").write_text("def broken(a, b, batches):\n    return 1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(own_module))
    with quick(), pytest.raises(BadInputError, match="own_net:broken: it raised ZeroDivisionError"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), task="own_net:broken")


def test_an_export_that_differs_stops_before_anything_else(failing: Path, tmp_path: Path, refuses: Any) -> None:
    code = "import torch\nclass N(torch.nn.Module):\n    def forward(self, x): return x + torch.rand_like(x)\n"
    (tmp_path / "noisy_net.py").write_text(code + "def make(): return N(), torch.ones(1, 4)\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setattr(sys, "dont_write_bytecode", True)
        with refuses(CheckError, where="export", got="outputs differ", expected="at most 0.001"):
            edgeslim.build("noisy_net:make", target="android-arm64", progress=Stopping("quantize_int8", SystemExit(9)))
    sys.modules.pop("noisy_net", None)


def test_an_output_that_is_a_file(tmp_path: Path, mlp_onnx: Path, mlp_samples: Path, refuses: Any) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for out, where in ((tmp_path / "taken", "taken"), (tmp_path / "taken" / "below", "taken/below")):
        with refuses(BadInputError, where=str(tmp_path / where), got="", expected="a folder"):
            edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), out=str(out))
    assert listing(tmp_path) == {"taken": b"mine"}


def test_an_output_that_cannot_be_written(
    failing: Path, mlp_onnx: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # nothing is read-only for root, who may run this
    with refuses(BadInputError, where="out/x", got="can't write here", expected="a folder that can be written"):
        edgeslim.build(str(mlp_onnx), target="android-arm64", data=str(mlp_samples), out="out/x")
