"""The training loop beside a plain one, cut into parts, killed and resumed, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from edgeslim.core import Batch, Context, Quiet, TrainingData
from edgeslim.errors import BadInputError, CheckError
from edgeslim.target import load_target
from edgeslim.task import Classification
from edgeslim.training.batching import collate
from edgeslim.training.gradual_pruning import PruningOptions
from edgeslim.training.hooks import KeepMasks
from edgeslim.training.loop import LoopOptions, TrainingResult, train
from edgeslim.training.objectives import LabelLoss
from edgeslim.training.torch_model import TorchModel

Item = TypeVar("Item")
OPTIONS = LoopOptions(epochs=3, batch_size=8, learning_rate=0.01, warmup=0.2, weight_decay=0.1, max_gradient_norm=0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(torch.relu(self.first(x))))


def make_data(count: int = 45) -> TrainingData:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(count, 1, 6)).astype(np.float32)
    labels = (x[:, 0, :3] @ np.array([1.0, -1.0, 0.5]) > 0).astype(int) + (x[:, 0, 3] > 0.5)
    rows = [Batch(feed={"x": row}, rows=1, labels=(int(label),)) for row, label in zip(x, labels, strict=True)]
    return TrainingData(training=rows[:-10], validation=rows[-10:])


def make_context(folder: Path, data: TrainingData | None = None, **more: Any) -> Context:
    return Context(
        target=load_target("android-arm64"),
        task=Classification(),
        calibration=(),
        reference=lambda feed: feed,
        seed=5,
        work_dir=folder,
        training=make_data() if data is None else data,
        **more,
    )


@pytest.fixture
def net() -> TorchModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return TorchModel(module=Net())


def run(net: TorchModel, options: LoopOptions, ctx: Context, **more: Any) -> tuple[TorchModel, TrainingResult]:
    model = net.copied()
    return model, train(LabelLoss(model), model.module, options, ctx, **more)


def test_the_loop_is_a_plain_one(net: TorchModel, tmp_path: Path) -> None:
    """The same steps by hand: order from the seed, AdamW, warm-up and linear fall, clipping, best weights."""
    ctx = make_context(tmp_path)
    model, found = run(net, OPTIONS, ctx)
    module, data = copy.deepcopy(net.module).eval(), make_data()
    vectors = [value for value in module.parameters() if value.dim() < 2]
    matrices = [value for value in module.parameters() if value.dim() > 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    losses, best, lowest, step = [], None, np.inf, 0
    for epoch in range(3):
        order = np.random.default_rng((5, epoch)).permutation(35)
        for start in range(0, 35, 8):
            rows = [data.training[row] for row in order[start : start + 8]]
            x = torch.tensor(np.concatenate([row.feed["x"] for row in rows]))
            labels = torch.tensor([row.labels[0] for row in rows])
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * ((step + 1) / 3 if step < 3 else (15 - step) / 12)
            loss = nn.functional.cross_entropy(module(x), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        x = torch.tensor(np.concatenate([row.feed["x"] for row in data.validation]))
        labels = torch.tensor([row.labels[0] for row in data.validation])
        with torch.no_grad():
            measured = nn.functional.cross_entropy(module(x), labels).item()
        assert found.validation[step] == pytest.approx(measured, abs=1e-6)
        if measured < lowest:
            lowest, best = measured, copy.deepcopy(module.state_dict())
    assert found.losses == pytest.approx(losses, abs=1e-6)
    assert best is not None
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value, best[name], atol=1e-6, rtol=0)


def test_parts_of_a_batch_make_the_same_steps(net: TorchModel, tmp_path: Path) -> None:
    _, whole = run(net, OPTIONS, make_context(tmp_path))
    _, parts = run(net, replace(OPTIONS, accumulate=3), make_context(tmp_path))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)


class Killed(BaseException):
    pass


class Killer(Quiet):
    """Ends the training at a step, as a kill would."""

    def __init__(self, at: int) -> None:
        self._at = at

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        for number, item in enumerate(items):
            if number == self._at:
                raise Killed
            yield item


@pytest.mark.parametrize("at", [4, 7, 12])
def test_a_killed_training_ends_as_if_it_had_not_been(net: TorchModel, tmp_path: Path, at: int) -> None:
    """With dropout, a pruning schedule and early stopping: all that has a state."""
    options = replace(OPTIONS, dropout=True, checkpoint_steps=3, patience=2)
    pruning = PruningOptions(sparsity=0.5, prune_every=1, prune_end=0.5)

    def hooks() -> list[Any]:
        return [pruning.pruning_hook(net)[0]]

    expected, whole = run(net, options, make_context(tmp_path), hooks=hooks())
    ctx = make_context(tmp_path, checkpoints=tmp_path / "checkpoints")
    with pytest.raises(Killed):
        run(net, options, replace(ctx, progress=Killer(at)), hooks=hooks())
    files = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json"}
    again, resumed = run(net, options, ctx, hooks=hooks())
    assert resumed.resumed_at == at - at % 3
    assert resumed.losses == whole.losses
    assert resumed.best_step == whole.best_step
    for name, value in again.module.state_dict().items():
        assert torch.equal(value, expected.module.state_dict()[name]), name


def test_a_checkpoint_of_something_else_is_none(net: TorchModel, tmp_path: Path) -> None:
    options = replace(OPTIONS, checkpoint_steps=3)
    ctx = make_context(tmp_path, checkpoints=tmp_path / "checkpoints")
    with pytest.raises(Killed):
        run(net, options, replace(ctx, progress=Killer(7)))
    assert run(net, replace(options, learning_rate=0.02), ctx)[1].resumed_at == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name == "step-15"
    for broken in ("{", "[]", json.dumps({"key": 3})):
        (folder / "progress.json").write_text(broken, encoding="utf-8")
        assert run(net, options, ctx)[1].resumed_at == 0


def test_masked_weights_stay_zero(net: TorchModel, tmp_path: Path) -> None:
    mask = torch.rand(16, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    model, _ = run(net, OPTIONS, make_context(tmp_path), hooks=[KeepMasks({"first.weight": mask})])
    weight = dict(model.module.named_parameters())["first.weight"]
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).all()


def test_it_stops_early_and_keeps_the_best(net: TorchModel, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=50, learning_rate=0.3, patience=2, validate_steps=2, schedule="constant")
    _, found = run(net, options, make_context(tmp_path))
    steps = list(found.validation)
    assert len(found.losses) < 250
    assert found.validation[found.best_step] == min(found.validation.values())
    assert steps.index(found.best_step) == len(steps) - 3


def test_without_dropout_nothing_is_dropped(net: TorchModel, tmp_path: Path) -> None:
    first, second = (run(net, replace(OPTIONS, dropout=on), make_context(tmp_path))[1] for on in (False, True))
    assert first.losses[0] != second.losses[0]
    assert second.losses == run(net, replace(OPTIONS, dropout=True), make_context(tmp_path))[1].losses


def test_sequences_are_padded_at_their_end() -> None:
    rows = [
        Batch(feed={"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), int)}, rows=1),
        Batch(feed={"input_ids": np.array([[4]]), "attention_mask": np.ones((1, 1), int)}, rows=1),
    ]
    inputs, labels = collate(rows, {"input_ids": 9})
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels is None


def broken(net: TorchModel) -> TorchModel:
    with torch.no_grad():
        net.module.get_parameter("first.weight").fill_(float("nan"))
    return net


def test_what_it_refuses(net: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no training data"):
        run(net, OPTIONS, replace(make_context(tmp_path), training=None))
    with pytest.raises(CheckError, match="the loss of step 1 is nan"):
        run(broken(net), OPTIONS, make_context(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"learning_rate": float("nan")}, {"warmup": 1.5}, {"patience": -1}, {"weight_decay": -1.0}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    make: Callable[..., LoopOptions] = LoopOptions
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


def test_products_in_bfloat16_train_as_well(net: TorchModel, tmp_path: Path) -> None:
    """Losses are near those of float32 and not the same; weights stay float32."""
    ctx = make_context(tmp_path)
    _, exact = run(net, OPTIONS, ctx)
    model, found = run(net, replace(OPTIONS, precision="bfloat16"), ctx)
    assert found.losses == pytest.approx(exact.losses, rel=0.02)
    assert max(abs(one - other) for one, other in zip(found.losses, exact.losses, strict=True)) > 1e-6
    assert {value.dtype for value in model.module.parameters()} == {torch.float32}
    assert found.losses[-1] < 0.8 * found.losses[0]
