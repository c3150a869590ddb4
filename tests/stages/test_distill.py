"""What distillation and fine-tuning refuse, and what a recipe without weights gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeslim.core import Batch, Context, TrainingData
from edgeslim.errors import BadInputError
from edgeslim.stages.distill import Distill
from edgeslim.stages.finetune import Finetune
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction, TextClassification
from edgeslim.training.objectives import DistillationWeights, usual_weights
from edgeslim.training.torch_model import TorchModel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def make_context(folder: Path, teacher: TorchModel, labels: tuple[int, ...] = ()) -> Context:
    generator = np.random.default_rng(0)
    rows = [
        Batch(feed={"x": generator.normal(size=(1, 4)).astype(np.float32)}, rows=1, labels=labels) for _ in range(40)
    ]
    return Context(
        target=load_target("android-arm64"),
        task=TextClassification(labels=("a", "b")),
        calibration=(),
        reference=lambda feed: feed,
        seed=0,
        work_dir=folder,
        training=TrainingData(training=rows[:32], validation=rows[32:]),
        teacher=teacher,
    )


def test_a_student_learns_its_teachers_answers_without_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher, student = TorchModel(module=Net()).frozen(), TorchModel(module=Net())
    stage = Distill(soft=1.0, temperature=1.0, epochs=60, learning_rate=0.1, weight_decay=0.0)
    result = stage.run(student, make_context(tmp_path, teacher))
    assert result.metrics["validation_loss"] < 1e-3 < result.metrics["first_loss"]
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (model.module(x).softmax(1) for model in (result.model, teacher))
    assert (ours - theirs).abs().max() < 0.05
    assert result.metrics["student_parameters"] == result.metrics["teacher_parameters"] == 10


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_simulated_quantization_ends_with_float_weights(tmp_path: Path, kind: Any) -> None:
    teacher = TorchModel(module=Net()).frozen()
    result = Distill(soft=1.0, epochs=1, simulate=kind).run(TorchModel(module=Net()), make_context(tmp_path, teacher))
    assert "forward" not in vars(result.model.module.get_submodule("linear"))


def test_the_task_chooses_what_no_recipe_names() -> None:
    classifier, encoder = TextClassification(labels=("a", "b")).manifest(), FeatureExtraction().manifest()
    assert usual_weights(classifier, layered=True) == DistillationWeights(soft=1.0, hidden=1.0)
    assert usual_weights(encoder, layered=False) == DistillationWeights(embeddings=1.0)


def test_what_they_refuse(tmp_path: Path) -> None:
    teacher = TorchModel(module=Net()).frozen()
    ctx = make_context(tmp_path, teacher)
    with pytest.raises(BadInputError, match="layers aren't known"):
        Distill(hidden=1.0).run(TorchModel(module=Net()), ctx)
    with pytest.raises(BadInputError, match="without labels"):
        Distill(labels=1.0).run(TorchModel(module=Net()), ctx)
    with pytest.raises(BadInputError, match="a smaller student of a Net"):
        Distill(student={"hidden_size": 2}).run(TorchModel(module=Net()), ctx)
    with pytest.raises(BadInputError, match="distill learns from"):
        Finetune().run(TorchModel(module=Net()), ctx)
    with pytest.raises(BadInputError, match="class index 7"):
        Finetune(epochs=1).run(TorchModel(module=Net()), make_context(tmp_path, teacher, labels=(7,)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"soft": 0.0}, "no part of the loss"), ({"hidden": -1.0}, "negative"), ({"temperature": 0.0}, "temperature")],
)
def test_settings_out_of_range(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Distill(**wrong)  # type: ignore[arg-type]
