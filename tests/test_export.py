from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeslim import export
from edgeslim.core import Batch
from edgeslim.errors import BadInputError, CheckError
from edgeslim.export import export_huggingface, export_own, import_onnx, torch_runner
from edgeslim.session import max_difference, open_runner
from edgeslim.source import OwnModel, load_huggingface, resolve_source

OPTIMUM = importlib.util.find_spec("optimum") is not None
needs_optimum = pytest.mark.skipif(not OPTIMUM, reason="the extra `optimum` isn't installed")
ENGINES = [pytest.param("optimum", marks=needs_optimum), "torch"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def tokens(rows: int, length: int, seed: int = 0) -> Batch:
    ids = np.random.default_rng(seed).integers(5, 200, (rows, length))
    mask = np.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return Batch(feed={"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}, rows=rows)


@pytest.fixture(scope="module")
def exports(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny encoder through each engine, exported once."""
    module = load_huggingface(resolve_source(str(tiny_bert)), classifier=False)
    made: dict[str, export.Export] = {}

    def get(engine: str) -> tuple[nn.Module, export.Export]:
        if engine not in made:
            folder = tmp_path_factory.mktemp(engine) / "float"
            with pytest.MonkeyPatch.context() as patch:
                if engine == "torch":
                    patch.setattr(export, "_optimum_knows", lambda module, task: False)
                made[engine] = export_huggingface(
                    module, [tokens(1, 9), tokens(2, 12)], classifier=False, opset_max=18, folder=folder
                )
        return module, made[engine]

    return get


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder(exports: Any, engine: str) -> None:
    module, made = exports(engine)
    assert made.engine == engine
    assert made.metrics["export_samples"] == 2
    assert made.metrics["export_max_abs_diff"] < 1e-4
    assert made.metrics["export_cosine_min"] > 1 - 1e-6
    assert [file.name for file in sorted(made.path.parent.iterdir())] == ["model.onnx", "weights.bin"]
    runner = open_runner(made.path)
    assert runner.outputs == ("last_hidden_state",)
    assert set(runner.inputs) == set(INPUTS)
    # Batch and length are free, beyond what the samples had.
    for batch in (tokens(1, 3, 1), tokens(5, 31, 2), tokens(2, 1, 3)):
        difference, _ = max_difference(torch_runner(module, "last_hidden_state")(batch.feed), runner(batch.feed))
        assert difference < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_the_graph_is_tidy(exports: Any, engine: str, tiny_bert: Path) -> None:
    model = onnx.load(exports(engine)[1].path)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert not [node for node in model.graph.node if node.op_type == "Constant"]
    assert not [node.name for node in model.graph.node if node.doc_string or node.metadata_props]
    assert str(tiny_bert.parent) not in str(model)
    assert opset_of(exports(engine)[1].path) <= 18
    onnx.checker.check_model(model)


def test_a_classifier(tiny_classifier: Path, tmp_path: Path) -> None:
    module = load_huggingface(resolve_source(str(tiny_classifier)), classifier=True)
    made = export_huggingface(module, [tokens(1, 9)], classifier=True, opset_max=21, folder=tmp_path / "float")
    assert made.engine == ("optimum" if OPTIMUM else "torch")
    runner = open_runner(made.path)
    assert runner.outputs == ("logits",)
    assert runner(tokens(3, 5).feed)["logits"].shape == (3, 2)


@needs_optimum
def test_optimum_is_asked_first() -> None:
    known, unknown = nn.Linear(1, 1), nn.Linear(1, 1)
    known.config = type("Config", (), {"model_type": "bert"})()  # type: ignore[assignment]
    unknown.config = type("Config", (), {"model_type": "no_such_kind"})()  # type: ignore[assignment]
    assert export._optimum_knows(known, "feature-extraction")
    assert not export._optimum_knows(known, "juggling")
    assert not export._optimum_knows(unknown, "feature-extraction")
    assert not export._optimum_knows(nn.Linear(1, 1), "feature-extraction")


def test_without_optimum_torch_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("optimum.exporters")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx.model_configs", None)
    monkeypatch.setitem(sys.modules, "optimum.exporters", None)
    assert not export._optimum_knows(nn.Linear(1, 1), "feature-extraction")


def own(module: nn.Module, dynamic: Any = None, **inputs: torch.Tensor) -> tuple[OwnModel, list[Batch]]:
    feed = {name: value.numpy() for name, value in inputs.items()}
    sample = Batch(feed=feed, rows=len(next(iter(feed.values()))))
    return OwnModel(module=module.eval(), inputs=inputs, dynamic_shapes=dynamic), [sample]


class Pair(nn.Module):
    """Two outputs, one of them nested, and an input that a plain name doesn't fit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> Any:
        return self.lstm(x * scale)


def test_own_code_with_nested_outputs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, samples = own(Pair(), x=torch.randn(2, 5, 8), scale=torch.tensor([2.0]))
    made = export_own(model, samples, opset_max=21, folder=tmp_path / "float")
    assert made.metrics["export_max_abs_diff"] < 1e-4
    runner = open_runner(made.path)
    assert runner.inputs == ("x", "scale")
    assert len(runner.outputs) == 3


def test_dimensions_are_fixed_unless_the_user_names_dynamic_ones(tmp_path: Path) -> None:
    torch.manual_seed(1)
    fixed, samples = own(nn.Linear(4, 3), input=torch.ones(2, 4))
    made = export_own(fixed, samples, opset_max=21, folder=tmp_path / "fixed")
    assert open_runner(made.path).signature()["inputs"][0]["shape"] == [2, 4]
    assert opset_of(made.path) == 20
    free, samples = own(nn.Linear(4, 3), {"input": {0: torch.export.Dim.DYNAMIC}}, input=torch.ones(2, 4))
    made = export_own(free, samples, opset_max=21, folder=tmp_path / "free")
    assert open_runner(made.path).signature()["inputs"][0]["shape"] == [None, 4]


def opset_of(path: Path) -> int:
    return next(item.version for item in onnx.load(path).opset_import if item.domain == "")


def test_the_opset_stays_below_the_targets_newest(tmp_path: Path) -> None:
    model, samples = own(nn.Linear(4, 3), input=torch.ones(2, 4))
    made = export_own(model, samples, opset_max=17, folder=tmp_path / "float")
    assert opset_of(made.path) == 17


class Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Poisoned(nn.Module):
    """Gives NaN on the samples, and on nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x - 2)


def test_control_flow_that_depends_on_values(tmp_path: Path, refuses: Any) -> None:
    model, samples = own(Undecided(), x=torch.ones(2, 4))
    with refuses(BadInputError, where="export", got="can't express the model", expected="trace", hint="control flow"):
        export_own(model, samples, opset_max=21, folder=tmp_path / "float")


@pytest.mark.parametrize("module", [Noisy(), Poisoned()], ids=lambda module: type(module).__name__)
def test_exports_that_differ_from_their_source(module: nn.Module, tmp_path: Path, refuses: Any) -> None:
    model, samples = own(module, x=torch.ones(2, 4))
    with refuses(CheckError, where="export", got="outputs differ", expected="at most 0.001", hint="random numbers"):
        export_own(model, samples, opset_max=21, folder=tmp_path / "float")


def test_dynamic_shapes_that_do_not_fit(tmp_path: Path, refuses: Any) -> None:
    model, samples = own(nn.Linear(4, 3), {"wrong": {0: torch.export.Dim.DYNAMIC}}, input=torch.ones(2, 4))
    with refuses(BadInputError, where="export", got="can't express the model", expected="trace"):
        export_own(model, samples, opset_max=21, folder=tmp_path / "float")


def test_weights_that_are_not_finite(tmp_path: Path, refuses: Any) -> None:
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight[1, 2] = np.nan
    model, samples = own(module, input=torch.ones(2, 4))
    with refuses(BadInputError, where="tensor", got="1 of 12 weights are NaN", expected="finite", hint="training run"):
        export_own(model, samples, opset_max=21, folder=tmp_path / "float")


def test_large_weights_are_not_taken_for_infinite_ones(mlp_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(mlp_onnx)
    huge = np.full((16, 96), 3e38, np.float32)  # their sum is beyond float32
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(huge, model.graph.initializer[0].name))
    onnx.save(model, tmp_path / "m.onnx")
    import_onnx(tmp_path / "m.onnx", [Batch(feed={"x": np.zeros((1, 16), np.float32)}, rows=1)], folder=tmp_path / "f")


@pytest.mark.parametrize("which", ["mlp_onnx", "mlp_external"])
def test_an_onnx_file_is_taken_over(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    samples = [Batch(feed={"x": np.ones((2, 16), np.float32)}, rows=2)]
    made = import_onnx(request.getfixturevalue(which), samples, folder=tmp_path / "float")
    assert made.engine == "onnx"
    assert made.metrics == {"export_max_abs_diff": 0.0, "export_cosine_min": pytest.approx(1), "export_samples": 1.0}
    assert sorted(file.name for file in made.path.parent.iterdir()) == ["model.onnx", "weights.bin"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_onnx_file_with_weights_that_are_not_finite(
    value: float, mlp_onnx: Path, tmp_path: Path, refuses: Any
) -> None:
    model = onnx.load(mlp_onnx)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(96, value, np.float32), "bias"))
    onnx.save(model, tmp_path / "m.onnx")
    samples = [Batch(feed={"x": np.ones((2, 16), np.float32)}, rows=2)]
    with refuses(
        BadInputError, where="m.onnx: tensor bias", got="96 of 96 weights", expected="finite", hint="training"
    ):
        import_onnx(tmp_path / "m.onnx", samples, folder=tmp_path / "float")


def test_the_exporters_keep_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "transformers")]
    before = [logger.level for logger in loggers]
    model, samples = own(nn.Linear(4, 3), input=torch.ones(2, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_own(model, samples, opset_max=21, folder=tmp_path / "float")
    assert [str(item.message) for item in caught] == []
    assert capfd.readouterr() == ("", "")
    assert [logger.level for logger in loggers] == before
