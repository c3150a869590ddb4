"""Training with the grids simulated: what it simulates is what ONNX Runtime runs, and it brings the answer nearer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeslim.algorithms import smoothing
from edgeslim.algorithms.allocation import GridTensor
from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.core import Batch, Context, Quiet, StepResult, TrainingData
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.numerics import Affine
from edgeslim.quantizing import grid_training
from edgeslim.quantizing.storage_grid import packed_size, read_rounded, write_learned
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction
from edgeslim.training.grid_student import GridStudent, round_input
from edgeslim.training.loop import LoopOptions

ROWS, WIDTH, HIDDEN = 200, 32, 96
TASK = FeatureExtraction(pooling="mean", normalize=True)
Item = TypeVar("Item")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hidden states [B, S, 32] of ids [B, S]: an embedding, a MatMul with its bias, a Gemm, a normalization."""
    rng = np.random.default_rng(0)
    tensors = {
        "table": rng.normal(0, 0.5, (ROWS, WIDTH)),
        "first": rng.normal(0, 0.2, (WIDTH, HIDDEN)),
        "first_bias": rng.normal(0, 0.1, HIDDEN),
        "second": rng.normal(0, 0.1, (WIDTH, HIDDEN)),
        "second_bias": rng.normal(0, 0.1, WIDTH),
        "weight": rng.uniform(0.5, 2, WIDTH),
        "bias": rng.normal(0, 0.3, WIDTH),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embedding"),
        helper.make_node("MatMul", ["rows", "first"], ["product"], name="first_linear"),
        helper.make_node("Add", ["product", "first_bias"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["hidden"]),
        helper.make_node("Reshape", ["hidden", "flat"], ["tokens"]),
        helper.make_node("Gemm", ["tokens", "second", "second_bias"], ["made"], name="second_linear", transB=1),
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("Reshape", ["made", "shape"], ["back"]),
        helper.make_node("Add", ["rows", "back"], ["both"]),
        helper.make_node("LayerNormalization", ["both", "weight", "bias"], ["last_hidden_state"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in ("ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["B", "S", WIDTH])]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, HIDDEN]), "flat"))
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def batches(count: int, seed: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = rng.integers(0, ROWS, (1, int(rng.integers(4, 12))))
        made.append(Batch(feed={"ids": ids, "attention_mask": np.ones_like(ids)}, rows=1))
    return made


def quantize(path: Path, work: Path, more: dict[str, Any] | None = None, **settings: Any) -> tuple[StepResult, Path]:
    work.mkdir()
    torch.set_num_threads(1)
    context = Context(
        target=load_target("android-arm64"),
        task=TASK,
        calibration=batches(80, 1),
        reference=open_runner(path),
        seed=0,
        work_dir=work,
        **(more or {}),
    )
    stage = parse_fields(QuantizeInt8, {"target_bits": 2.5, "distill_batch_size": 8, **settings}, "recipe")
    result = stage.run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def lost(path: Path, made: Path) -> float:
    return 1 - TASK.evaluate(open_runner(made), open_runner(path), batches(100, 2), Quiet())["cosine_mean"]


def stored(path: Path) -> dict[str, bytes]:
    values = load_graph(path).graph.initializers.items()
    return {name: value.const_value.numpy().tobytes() for name, value in values if value.const_value is not None}


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StepResult, Path]:
    return quantize(model, tmp_path_factory.mktemp("plain") / "work", embeddings=False)


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StepResult, Path]:
    settings = {"embeddings": False, "distill_steps": 200, "distill_rate": 0.005, "distill_hidden": 0.0}
    return quantize(model, tmp_path_factory.mktemp("trained") / "work", **settings)


def test_the_answer_comes_nearer_in_as_many_bytes(
    model: Path, plain: tuple[StepResult, Path], trained: tuple[StepResult, Path]
) -> None:
    """On samples that were neither calibrated nor trained with."""
    assert lost(model, trained[1]) < 0.85 * lost(model, plain[1])
    assert trained[0].metrics["packed_bytes"] <= 1.003 * plain[0].metrics["packed_bytes"]
    assert trained[0].metrics["training_steps"] == 200
    assert trained[0].skipped.keys() == plain[0].skipped.keys()
    assert trained[0].metrics["last_loss"] < trained[0].metrics["first_loss"]


def test_only_integers_and_vectors_change(plain: tuple[StepResult, Path], trained: tuple[StepResult, Path]) -> None:
    before, after = stored(plain[1]), stored(trained[1])
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    layers = {f"{layer}.{part}" for layer in ("first_linear", "second_linear") for part in ("weight_int8", "bias")}
    assert changed == layers | {"weight", "bias"}
    kinds = [[node.op_type for node in load_graph(path).graph] for _, path in (plain, trained)]
    assert kinds[0] == kinds[1]


@pytest.fixture
def keeps_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned is kept, whether it is better or not and whatever it takes."""
    real = grid_training.GridTraining.run
    monkeypatch.setattr(grid_training.GridTraining, "run", lambda *given: replace(real(*given), first=float("inf")))
    monkeypatch.setattr("edgeslim.quantizing.storage_fit.NEAR", 1.0)


@pytest.mark.usefixtures("keeps_anything")
@pytest.mark.parametrize("activation", ["static", "per_token"])
def test_what_is_simulated_is_what_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    """The student's outputs beside ONNX Runtime's on the finished graph: int8 kernels, smoothing, biases."""
    kept: list[GridStudent] = []
    make = GridStudent.__init__

    def keep(self: GridStudent, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        kept.append(self)

    monkeypatch.setattr(GridStudent, "__init__", keep)
    monkeypatch.setattr("edgeslim.quantizing.grid_training.FREQUENT", 3)
    settings = {"activation": activation, "distill_steps": 30, "distill_rate": 0.02, "distill_hidden": 0.0}
    result, made = quantize(model, tmp_path / "work", **settings)
    assert result.metrics["trained_rows"] > 50
    assert "training" not in result.skipped
    runner = open_runner(made)
    for batch in batches(5, 3):
        feed = {name: torch.from_numpy(value) for name, value in batch.feed.items()}
        with torch.no_grad():
            ours = kept[0](feed, ())["last_hidden_state"].numpy()
        (theirs,) = runner(batch.feed).values()
        assert np.abs(ours - theirs).mean() < 2e-3 * np.abs(theirs).mean()


class Killed(BaseException):
    pass


class Killer(Quiet):
    """Ends the training at a step, as a kill would."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        for number, item in enumerate(items):
            if what == "training" and number == 7:
                raise Killed
            yield item


@pytest.mark.usefixtures("keeps_anything")
def test_a_killed_training_ends_as_if_it_had_not_been(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LoopOptions.__init__.__kwdefaults__, "checkpoint_steps", 5)
    _, whole = quantize(model, tmp_path / "whole", distill_steps=12)
    checkpoints = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(Killed):
        quantize(model, tmp_path / "killed", {**checkpoints, "progress": Killer()}, distill_steps=12)
    assert (tmp_path / "checkpoints" / "step-5").is_dir()
    _, resumed = quantize(model, tmp_path / "resumed", checkpoints, distill_steps=12)
    assert stored(whole) == stored(resumed)
    _, untrained = quantize(model, tmp_path / "untrained")
    assert stored(whole) != stored(untrained)


@pytest.mark.usefixtures("keeps_anything")
def test_it_trains_on_the_projects_data_where_there_are_any(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData(training=batches(16, 5), validation=batches(4, 6), padding={"ids": 0})
    seen = []
    real = grid_training._from_calibration

    def fall_back(found: Any) -> TrainingData:
        seen.append(len(found))
        return real(found)

    monkeypatch.setattr(grid_training, "_from_calibration", fall_back)
    _, with_data = quantize(model, tmp_path / "data", {"training": data}, distill_steps=4)
    assert not seen
    _, without = quantize(model, tmp_path / "calibration", distill_steps=4)
    assert seen == [80]
    assert stored(with_data) != stored(without)


def test_without_data_to_train_on_it_says_what_to_do(refuses: Any) -> None:
    with refuses(BadInputError, where="data", got="1 calibration samples to train on"):
        grid_training._from_calibration(batches(1, 0))


def test_one_of_several_processes_does_not_train_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    """It would wait for the others for good."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refuses(BadInputError, where="recipe: quantize_int8", got="distill_steps in a build that 2 processes share"):
        quantize(model, tmp_path / "work", distill_steps=2)


@pytest.mark.parametrize("goal", [10**6, None])
def test_a_goal_that_plain_int8_keeps_is_not_trained_for(model: Path, tmp_path: Path, goal: int | None) -> None:
    result, _ = quantize(model, tmp_path / "work", {"goal_bytes": goal}, target_bits=None, distill_steps=5)
    assert "training_steps" not in result.metrics
    assert result.skipped["training"].startswith("plain int8 is small enough")


@pytest.mark.usefixtures("keeps_anything")
def test_what_was_pruned_stays_zero(model: Path, tmp_path: Path) -> None:
    pruned = onnx.load(model)
    dead = np.random.default_rng(4).random((WIDTH, HIDDEN)) < 0.6
    (first,) = (tensor for tensor in pruned.graph.initializer if tensor.name == "first")
    first.CopyFrom(numpy_helper.from_array(np.where(dead, 0, numpy_helper.to_array(first)), "first"))
    onnx.save(pruned, tmp_path / "m.onnx")
    _, made = quantize(tmp_path / "m.onnx", tmp_path / "work", distill_steps=20, distill_rate=0.05)
    values = load_graph(made).graph.initializers["first_linear.weight_int8"].const_value
    assert values is not None
    assert (values.numpy()[dead] == 0).all()
    assert values.numpy()[~dead].any()


def test_what_is_no_better_is_not_kept(model: Path, plain: tuple[StepResult, Path], tmp_path: Path) -> None:
    result, made = quantize(model, tmp_path / "work", embeddings=False, distill_steps=3, distill_rate=0.49)
    assert result.skipped["training"].startswith("the loss on validation samples was 0.0")
    assert stored(made) == stored(plain[1])


@pytest.mark.usefixtures("keeps_anything")
def test_what_takes_too_much_is_not_kept(
    model: Path, plain: tuple[StepResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeslim.quantizing.storage_fit.NEAR", -0.02)
    settings = {"distill_steps": 3, "distill_rate": 0.001}
    result, made = quantize(model, tmp_path / "work", embeddings=False, **settings)
    assert result.skipped["training"].startswith("what it learned takes more than the ")
    assert stored(made) == stored(plain[1])


def test_learned_weights_take_no_more_than_they_may(plain: tuple[StepResult, Path], tmp_path: Path) -> None:
    """Weights halfway between two integers go where the bytes are; those near one stay."""
    model = load_graph(plain[1])
    weight = np.zeros((WIDTH, HIDDEN), np.float32)
    tensor = GridTensor(name="first_linear", weight=weight, upper=np.eye(WIDTH), gradients=np.ones(HIDDEN))
    before = read_rounded(model, tensor).values.astype(np.float32)
    size = packed_size(model, tmp_path / "size").weights
    rng = np.random.default_rng(0)
    halfway = rng.random(before.shape) < 0.05
    latent = np.where(halfway, before + np.sign(before) * rng.uniform(0.48, 0.55, before.shape), before)
    latents = {"first_linear": np.clip(latent, -127, 127).astype(np.float32)}
    kept = before.copy()
    assert write_learned(model, [tensor], latents, most=size - 200, folder=tmp_path / "small") is None
    assert (read_rounded(model, tensor).values == kept).all()
    found = write_learned(model, [tensor], latents, most=size + 20, folder=tmp_path / "fit")
    assert found is not None
    assert found <= size + 20
    after = read_rounded(model, tensor).values
    assert (after[~halfway] == before[~halfway]).all()
    assert 0 < (after != before).sum() < halfway.sum()
    assert np.abs(after - latent).max() < 0.55


@pytest.mark.parametrize(
    "form",
    [
        Smoothing(scale=None, affine=Affine(scale=0.03, zero_point=90), strength=0, error=0),
        Smoothing(scale=np.full(6, 2, np.float32), affine=Affine(scale=0.01, zero_point=128), strength=0, error=0),
        Smoothing(scale=None, affine=Affine(scale=1 / 127, zero_point=128), strength=0, error=0, least_peak=0.5),
        Smoothing(scale=None, affine=Affine(scale=1 / 223, zero_point=32), strength=0, error=0, least_peak=0.5),
    ],
)
def test_inputs_are_rounded_as_numpy_rounds_them(form: Smoothing) -> None:
    values = np.random.default_rng(0).normal(0, 1, (7, 6)).astype(np.float32)
    tensor = torch.from_numpy(values).requires_grad_()
    rounded = round_input(tensor, form)
    np.testing.assert_allclose(rounded.detach().numpy(), smoothing.round_input(values, form), atol=1e-6)
    rounded.sum().backward()
    np.testing.assert_allclose(tensor.grad, np.full((7, 6), 1.0 if form.scale is None else 0.5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distill_steps": -1}, "distill_steps: -1"),
        ({"distill_rate": 0.0}, "distill_rate: 0.0"),
        ({"distill_rate": 0.5}, "distill_rate: 0.5"),
        ({"distill_hidden": -1.0}, "distill_hidden: -1.0"),
        ({"distill_batch_size": 0}, "distill_batch_size: 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str, refuses: Any) -> None:
    with refuses(BadInputError, where="recipe", got=words):
        parse_fields(QuantizeInt8, settings, "recipe")


def test_a_stage_that_trains_says_so() -> None:
    assert not QuantizeInt8().trains
    assert replace(QuantizeInt8(), distill_steps=3).trains
