"""Sparsity learned in training: soft thresholding, Lasso, hard-concrete gates, and the stage on a small net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from edgeslim.core import Batch, Context, TrainingData
from edgeslim.errors import BadInputError
from edgeslim.stages.sparse_train import SparseTrain
from edgeslim.target import load_target
from edgeslim.task import Classification
from edgeslim.training.loop import LoopOptions, train
from edgeslim.training.sparsity import Gates, ProximalL1, expected_open, gate_values, soft_threshold
from edgeslim.training.torch_model import TorchModel

RNG = np.random.default_rng(12)


def make_context(folder: Path, rows: list[Batch], **more: Any) -> Context:
    return Context(
        target=load_target("android-arm64"),
        task=Classification(labels=("a", "b")),
        calibration=(),
        reference=lambda feed: feed,
        seed=0,
        work_dir=folder,
        training=TrainingData(training=rows[:-8], validation=rows[-8:]),
        **more,
    )


def test_the_proximal_step_in_closed_form() -> None:
    found = soft_threshold(torch.tensor([3.0, -3.0, 0.5, -0.5, 1.0]), 1.0)
    assert found.tolist() == [2.0, -2.0, 0.0, 0.0, 0.0]
    # It is the least of t |w| + (w - v)² / 2, looked for on a grid.
    grid = np.linspace(-4, 4, 80_001)
    for value in (-2.3, 0.4, 1.7):
        least = grid[np.argmin(0.7 * np.abs(grid) + (grid - value) ** 2 / 2)]
        assert soft_threshold(torch.tensor(value), 0.7).item() == pytest.approx(least, abs=1e-4)


class Regression(nn.Module):
    """Half the squared error of ``x w`` for each sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.student = nn.Linear(width, 1, bias=False)

    def forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        return 0.5 * (self.student(inputs["x"])[:, 0] - inputs["y"][:, 0]).square()


def test_the_proximal_steps_end_at_lasso(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = RNG.normal(size=(60, 8)) @ np.diag([1, 1, 3, 1, 0.3, 1, 2, 1])
    y = x @ np.array([2.0, 0, 0, -1.0, 1.5, 0, 0.02, 0]) + 0.1 * RNG.normal(size=60)
    rows = [Batch(feed={"x": x[i : i + 1].astype("f"), "y": y[i : i + 1, None].astype("f")}, rows=1) for i in range(60)]
    ctx = make_context(tmp_path, [*rows, *rows[:8]])
    objective = Regression(8)
    hook = ProximalL1(["weight"], {}, sparsity=0.5, begin=0, end=1, strength=0.1, steady=True)
    options = LoopOptions(epochs=600, batch_size=60, learning_rate=0.05, weight_decay=0, max_gradient_norm=1e9)
    train(objective, objective.student, replace(options, validate_steps=600), ctx, hooks=[hook])
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-10).fit(x, y).coef_
    found = objective.student.weight[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert ((found == 0) == (expected == 0)).all()


def test_expected_l0_is_what_the_gates_do() -> None:
    torch.manual_seed(3)
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    drawn = gate_values(log_alpha, torch.rand(200_000, 5).clamp(1e-6, 1 - 1e-6))
    np.testing.assert_allclose((drawn > 0).float().mean(0), expected_open(log_alpha), atol=4e-3)
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    assert (drawn == 1).any()
    assert gate_values(torch.tensor([-9.0, 9.0]), None).tolist() == [0.0, 1.0]


def test_the_penalty_has_the_gradient_of_its_formula() -> None:
    module = nn.Linear(3, 2)
    gates = Gates(module, ["weight"], {}, sparsity=0.5, begin=0, end=1, strength=0.6)
    penalty = gates.penalty()
    assert penalty is not None
    penalty.backward()
    open_ = expected_open(torch.tensor(2.0))
    assert penalty.item() == pytest.approx(0.6 * open_.item(), rel=1e-5)
    gradient = next(iter(gates.log_alpha.values())).grad
    np.testing.assert_allclose(gradient, torch.full((2, 3), 0.6 / 6 * open_ * (1 - open_)), rtol=1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("method", ["l1", "l0"])
def test_the_stage_reaches_its_sparsity(tmp_path: Path, method: Any) -> None:
    """Only two of ten inputs matter: what is pruned are the weights of the others."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = RNG.normal(size=(264, 1, 10)).astype(np.float32)
    rows = [Batch(feed={"x": row}, rows=1, labels=(int(row[0, 0] > row[0, 1]),)) for row in x]
    ctx = make_context(tmp_path, rows)
    stage = SparseTrain(
        method=method,
        learn="labels",
        sparsity=0.85,
        epochs=40,
        learning_rate=0.01,
        prune=("first*",),
        strength=0.01,
        gate_rate=5.0,
    )
    start = TorchModel(module=Net())
    result = stage.run(start, ctx)
    mask, weight = result.model.masks["first.weight"], result.model.module.get_parameter("first.weight")
    assert int((~mask).sum()) == round(0.85 * 320)
    assert (weight[~mask] == 0).all()
    kept = mask.float().sum(0)
    assert kept[:2].sum() >= 0.6 * kept.sum()
    with torch.no_grad():
        right = result.model.module(torch.tensor(x[:, 0])).argmax(1) == torch.tensor([row.labels[0] for row in rows])
    assert right.float().mean() > 0.95
    assert result.metrics["sparsity"] == pytest.approx(0.85, abs=0.01)
    assert result.skipped == {"second.weight": "not among the recipe's patterns"}
    assert "forward" not in vars(result.model.module.get_submodule("first"))


def test_state_survives() -> None:
    hook = ProximalL1(["w"], {"w": torch.tensor([True, False])}, sparsity=0.5, begin=0, end=1, strength=2.0)
    hook.fixed = True
    other = ProximalL1(["w"], {}, sparsity=0.5, begin=0, end=1, strength=1.0)
    other.load_state(hook.state())
    assert (other.strength, other.fixed, other.masks["w"].tolist()) == (2.0, True, [True, False])


def test_what_it_refuses(tmp_path: Path) -> None:
    rows = [Batch(feed={"x": np.zeros((1, 10), np.float32)}, rows=1) for _ in range(20)]
    ctx = make_context(tmp_path, rows)
    with pytest.raises(BadInputError, match="names no weight"):
        SparseTrain(prune=("nothing",)).run(TorchModel(module=Net()), ctx)
    with pytest.raises(BadInputError, match="no labels"):
        SparseTrain(learn="labels").run(TorchModel(module=Net()), ctx)
    for wrong in ({"sparsity": 1.0}, {"prune_begin": 0.9}, {"strength": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SparseTrain(**wrong)  # type: ignore[arg-type]
