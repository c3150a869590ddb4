"""Builds with stages on the torch model: what they are measured on, what stays zero, and recipes that can't be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Context, Report, StepResult
from edgeslim.errors import BadInputError, CheckError
from edgeslim.graphs import graph
from edgeslim.quantizing import grid_training
from edgeslim.recipe import NamedStage, Recipe, parse_recipe
from edgeslim.stage_runs import _check_zeros
from edgeslim.training import loop
from edgeslim.training.gradual_pruning import GradualPruning
from edgeslim.training.torch_model import TorchModel

BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'
PROJECT = """\
model = "{model}"
target = "board.toml"
[data]
calibration = "calibration.txt"
evaluation = "evaluation.jsonl"
{training}
[budget]
max_drop = 1
"""
DISTILL = """
[[steps]]
use = "distill"
student_layers = 1
epochs = 15
learning_rate = 0.01
batch_size = 8
sparsity = 0.5
prune = ["*encoder*"]
"""
KILLED = """\
import os, signal, sys
from pathlib import Path
import torch
import edgeslim
from edgeslim.training import loop
save = loop.save_checkpoint
def save_and_die(folder, step, tensors, progress):
    save(folder, step, tensors, progress)
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = save_and_die
torch.set_num_threads(1)
edgeslim.build(folder=Path(sys.argv[1]), out=sys.argv[1] + "/killed")
"""
UNLABELLED = 'label_column = ""\ntraining = "training.jsonl"'
FINETUNE = '[[steps]]\nuse = "finetune"\nepochs = 1\nbatch_size = 8\n'


@pytest.fixture
def project(
    tmp_path: Path, labelled_texts: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A folder with a project file, data that share nothing, and a recipe."""
    monkeypatch.setattr(latency, "PROBES", 1)
    torch.set_num_threads(1)

    def rows(part: tuple[tuple[str, str], ...]) -> str:
        return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in part)

    def write(model: Path | str, steps: str, training: str = 'training = "training.jsonl"') -> Path:
        (tmp_path / "board.toml").write_text(BOARD, encoding="utf-8")
        (tmp_path / "calibration.txt").write_text("".join(f"{text}\n" for text, _ in labelled_texts[:8]), "utf-8")
        (tmp_path / "evaluation.jsonl").write_text(rows(labelled_texts[8:30]), encoding="utf-8")
        (tmp_path / "training.jsonl").write_text(rows(labelled_texts[30:]), encoding="utf-8")
        text = PROJECT.format(model=model, training=training) + steps
        (tmp_path / "edgeslim.toml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def count_zeros(path: Path) -> int:
    """In the larger constants of a graph."""
    found = (item.const_value for item in graph.load_graph(path).graph.initializers.values())
    return sum(int((value.numpy() == 0).sum()) for value in found if value is not None and value.size > 99)


def build(folder: Path, **more: Any) -> Report:
    return edgeslim.build(folder=folder, **more)


def test_a_pruned_student_is_fine_tuned_and_quantized(
    project: Callable[..., Path], tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = DISTILL + FINETUNE + '[[steps]]\nuse = "quantize_int8"\nrounding = "nearest"\nmin_elements = 100\n'
    folder = project(tiny_classifier, steps)
    monkeypatch.setenv("EDGESLIM_CACHE", str(folder / "cache"))
    report = build(folder)
    export, distill, finetune, quantize, *_ = report.steps
    assert [step.name for step in report.steps[:4]] == ["export", "distill", "finetune", "quantize_int8"]
    assert distill.metrics["student_parameters"] < distill.metrics["teacher_parameters"]
    assert distill.metrics["validation_loss"] < distill.metrics["first_loss"]
    assert distill.after["bytes"] == distill.bytes < export.bytes  # type: ignore[operator]
    assert distill.after["download_bytes"] < 0.8 * distill.before["download_bytes"]
    assert "bytes" in finetune.unchanged
    assert finetune.before["drop"] == distill.after["drop"]
    assert "8 calibration samples" in quantize.measured_on
    # Half of the encoder is zero to the end, and no torch model is in the package.
    cached = sorted((folder / "cache" / "v1").glob("*/files/model.onnx"), key=lambda path: path.stat().st_size)
    last = [path for path in cached if not (path.parent / "state.safetensors").exists()]
    zeros = max(
        int((array == 0).sum())
        for path in last
        for value in [graph.load_graph(path).graph.initializers.values()]
        for array in [
            np.concatenate([item.const_value.numpy().ravel() for item in value if item.const_value.size > 99])
        ]
    )
    assert zeros >= distill.metrics["pruned_weights"]
    accuracy = next(item.value for item in report.findings if item.metric == "accuracy")
    assert accuracy is not None
    assert accuracy > 0.8
    assert not list((folder / "cache" / "v1" / "training").glob("*"))
    again = build(folder, out=str(folder / "elsewhere"))
    assert all(step.cached for step in again.steps[:4])


def test_only_a_later_step_runs_again(
    project: Callable[..., Path], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch model goes on from the cache, its structure and its masks included; an encoder needs no labels."""
    one = '[[steps]]\nuse = "distill"\nstudent_layers = 1\nepochs = 1\nsparsity = 0.5\nprune_end = 0.0\n'
    folder = project(tiny_bert, one, UNLABELLED)
    monkeypatch.setenv("EDGESLIM_CACHE", str(folder / "cache"))
    build(folder)
    project(tiny_bert, one + '[[steps]]\nuse = "distill"\nepochs = 1\n', UNLABELLED)
    report = build(folder)
    assert [step.cached for step in report.steps[:3]] == [True, True, False]
    assert report.steps[2].metrics["pruned_weights"] == report.steps[1].metrics["pruned_weights"]


@pytest.mark.slow
def test_a_build_killed_in_training_ends_as_one_that_was_not(
    project: Callable[..., Path], tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tiny_classifier, DISTILL.replace("epochs = 15", "epochs = 2") + "checkpoint_steps = 3\n")
    whole = build(folder, out=str(folder / "whole"))
    monkeypatch.setenv("EDGESLIM_CACHE", str(folder / "cache"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "killed").exists()
    resumed: list[int] = []
    load = loop.load_checkpoint

    def load_and_tell(*arguments: Any) -> Any:
        found = load(*arguments)
        resumed.append(0 if found is None else found[1]["step"])
        return found

    monkeypatch.setattr(loop, "load_checkpoint", load_and_tell)
    again = build(folder, out=str(folder / "again"))
    assert resumed == [6]
    assert again.steps[1].metrics == whole.steps[1].metrics
    files = [Path(report.artifact.path).read_bytes() for report in (whole, again)]
    assert files[0] == files[1]


def test_low_rank_is_trained_on_and_stays_low(
    project: Callable[..., Path], tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide = '[[steps]]\nuse = "low_rank"\nkeep = 0.6\nmultiple = 2\nmin_elements = 1\n'
    quantize = '[[steps]]\nuse = "quantize_int8"\nrounding = "nearest"\nmin_elements = 1\n'
    folder = project(tiny_classifier, divide + FINETUNE + quantize)
    monkeypatch.setenv("EDGESLIM_CACHE", str(folder / "cache"))
    report = build(folder)
    export, divided, tuned, quantized, *_ = report.steps
    assert [step.name for step in report.steps[1:4]] == ["low_rank", "finetune", "quantize_int8"]
    assert divided.metrics["kept"] <= 0.6
    assert divided.bytes < export.bytes  # type: ignore[operator]
    assert "bytes" in tuned.unchanged
    assert quantized.changed > 2 * divided.changed  # both factors of each, and what stayed whole
    project(tiny_classifier, divide + FINETUNE.replace("epochs = 1", "epochs = 2") + quantize)
    assert [step.cached for step in build(folder).steps[:3]] == [True, True, False]


def test_a_graph_is_trained_on_its_grids(
    project: Callable[..., Path], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the project's training data; what changes in them makes the step anew."""
    step = '[[steps]]\nuse = "quantize_int8"\nmin_elements = 100\ntarget_bits = 4.0\ndistill_steps = 5\n'
    folder = project(tiny_bert, step, UNLABELLED)
    monkeypatch.setenv("EDGESLIM_CACHE", str(folder / "cache"))
    seen = []
    real = grid_training.GridTraining.run

    def run(self: grid_training.GridTraining, *given: Any) -> Any:
        seen.append(self._context.training)
        assert self._context.checkpoints is not None
        return real(self, *given)

    monkeypatch.setattr(grid_training.GridTraining, "run", run)
    report = build(folder)
    quantize = next(step for step in report.steps if step.name == "quantize_int8")
    assert quantize.metrics["training_steps"] == 5
    assert len(seen[0].training) + len(seen[0].validation) == len((folder / "training.jsonl").read_text().splitlines())
    assert not list((folder / "cache" / "v1" / "training").glob("*"))
    again = build(folder, out=str(folder / "elsewhere"))
    assert next(step for step in again.steps if step.name == "quantize_int8").cached
    lines = (folder / "training.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "training.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    build(folder)
    assert len(seen) == 2


def test_own_code_is_trained(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project("net_of_torch_stages:make", '[[steps]]\nuse = "finetune"\nepochs = 4\nlearning_rate = 0.01\n')
    (folder / "net_of_torch_stages.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))\n"
        "    batch = torch.export.Dim.DYNAMIC\n"
        "    return net, {'input': torch.zeros(2, 4)}, {'input': {0: batch}}\n",
        encoding="utf-8",
    )
    generator = np.random.default_rng(0)
    for name, count in (("data", 40), ("training", 120)):
        values = generator.normal(size=(count, 4)).astype(np.float32)
        np.savez(folder / f"{name}.npz", input=values, label=(values[:, 0] > 0).astype(np.int64))
    text = (folder / "edgeslim.toml").read_text(encoding="utf-8").replace("training.jsonl", "training.npz")
    text = text.replace('calibration = "calibration.txt"\nevaluation = "evaluation.jsonl"', 'file = "data.npz"')
    (folder / "edgeslim.toml").write_text('task = "text-classification"\n' + text, encoding="utf-8")
    report = build(folder)
    step = report.steps[1]
    assert step.metrics["last_loss"] < step.metrics["first_loss"]


def test_recipes_that_cannot_be(project: Callable[..., Path], tiny_bert: Path, mlp_onnx: Path) -> None:
    with pytest.raises(BadInputError, match="finetune works on a torch model"):
        build(project(mlp_onnx, FINETUNE))
    with pytest.raises(BadInputError, match="no training data"):
        build(project(tiny_bert, '[[steps]]\nuse = "distill"\n', training='label_column = ""'))
    with pytest.raises(BadInputError, match="22 of 22 samples are evaluation data"):
        build(project(tiny_bert, FINETUNE, training='label_column = ""\ntraining = "evaluation.jsonl"'))
    with pytest.raises(BadInputError, match="write quantize_int8 after finetune"):
        parse_recipe(({"use": "quantize_int8"}, {"use": "finetune"}), "here")


def test_an_unlabelled_fine_tuning(project: Callable[..., Path], tiny_classifier: Path) -> None:
    folder = project(tiny_classifier, FINETUNE, training='training = "more.txt"')
    (folder / "more.txt").write_text("".join(f"text number {number}\n" for number in range(20)), encoding="utf-8")
    with pytest.raises(BadInputError, match="distill learns from"):
        build(folder)


class Either:
    level = "either"


class Torch:
    level = "torch"


def test_a_stage_that_takes_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeslim import recipe

    stages = {"either": Either(), "torch": Torch()}
    monkeypatch.setattr(
        recipe, "_parse_stage", lambda table, where: NamedStage(name=table["use"], stage=stages[table["use"]])
    )

    def levels(*names: str) -> list[int]:
        found: Recipe = parse_recipe([{"use": name} for name in names], "here")
        return [len(found.torch), len(found.graph)]

    assert levels("either", "torch", "either") == [2, 1]
    assert levels("either") == [0, 1]


def test_zeros_must_be_in_the_graph(tmp_path: Path, mlp_onnx: Path) -> None:
    model = graph.load_graph(mlp_onnx)
    graph.save_graph(model, tmp_path / "g")
    with pytest.raises(CheckError, match="at least the"):
        _check_zeros(tmp_path / "g", {"first": torch.zeros(16, 96, dtype=torch.bool)})


def test_a_stage_that_drops_masks_is_refused(
    project: Callable[..., Path], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeslim.stages.distill import Distill

    plain = Distill.run

    def forget(self: Distill, model: TorchModel, ctx: Context) -> StepResult[TorchModel]:
        if not model.masks:
            return plain(self, model, ctx)
        return StepResult(model=TorchModel(module=model.module, output=model.output), changed=1)

    monkeypatch.setattr(Distill, "run", forget)
    step = '[[steps]]\nuse = "distill"\nepochs = 1\nsparsity = 0.5\n'
    with pytest.raises(BadInputError, match="prune after distill"):
        build(project(tiny_bert, step + step, UNLABELLED))
    assert GradualPruning  # the hook that made the masks
