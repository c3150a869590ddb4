"""Coarser grids for storage: the bytes that were asked for, on the int8 kernels, at little loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Context, Quiet, StepResult
from edgeslim.errors import BadInputError, BudgetError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.packaging.archive import deflated_bytes
from edgeslim.quantizing.storage_grid import encode_weights, packed_size
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

ROWS, WIDTH, HIDDEN = 3000, 48, 160
WEIGHTS = ROWS * WIDTH + 2 * WIDTH * HIDDEN
TASK = FeatureExtraction(pooling="mean", normalize=True)


def make_model(path: Path, activation: str = "Gelu") -> Path:
    """Hidden states [B, S, 48] of ids [B, S]: an embedding and a residual block of two linears."""
    rng = np.random.default_rng(0)
    tensors = {
        "table": rng.normal(0, 0.5, (ROWS, WIDTH)),
        "first": rng.normal(0, 0.15, (WIDTH, HIDDEN)) * rng.uniform(0.3, 3, HIDDEN),
        "bias": rng.normal(0, 0.1, HIDDEN),
        "second": rng.normal(0, 0.1, (HIDDEN, WIDTH)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embedding"),
        helper.make_node("MatMul", ["rows", "first"], ["product"], name="first_linear"),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node(activation, ["sum"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["made"], name="second_linear"),
        helper.make_node("Add", ["rows", "made"], ["last_hidden_state"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in ("ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["B", "S", WIDTH])]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def batches(count: int, seed: int) -> list[Batch]:
    """Ids as words come: few often, most hardly ever."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, ROWS + 1)
    made = []
    for _ in range(count):
        ids = rng.choice(ROWS, (1, 20), p=share / share.sum())
        made.append(Batch(feed={"ids": ids, "attention_mask": np.ones_like(ids)}, rows=1))
    return made


def quantize(path: Path, work: Path, goal: int | None = None, **settings: Any) -> tuple[StepResult, Path]:
    work.mkdir()
    context = Context(
        target=load_target("android-arm64"),
        task=TASK,
        calibration=batches(60, 1),
        reference=open_runner(path),
        seed=0,
        work_dir=work,
        goal_bytes=goal,
    )
    result = parse_fields(QuantizeInt8, settings, "recipe").run(load_graph(path), context)
    return result, save_graph(result.model, work / "out")[0]


def cosine(path: Path, made: Path) -> float:
    return TASK.evaluate(open_runner(made), open_runner(path), batches(40, 2), Quiet())["cosine_mean"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m.onnx")


def test_bits_that_are_asked_for_come_of_it(model: Path, tmp_path: Path) -> None:
    found = {}
    for bits in (2.5, 4.0):
        result, made = quantize(model, tmp_path / str(bits), target_bits=bits)
        assert result.metrics["storage_bits"] == pytest.approx(bits, rel=0.01)
        assert not result.skipped
        packed = tmp_path / f"{bits}.esz"
        encode_weights(made, packed)
        assert result.metrics["packed_bytes"] == packed.stat().st_size
        assert result.metrics["predicted_bytes"] == pytest.approx(packed.stat().st_size, rel=0.01)
        found[bits] = cosine(model, made)
        loss = result.metrics["predicted_change"] / 2
        assert 0.3 * loss < 1 - found[bits] < 3 * loss + 0.002
    assert found[2.5] < found[4.0]
    assert found[4.0] > 0.99


def test_kernels_and_graph_are_those_of_plain_int8(model: Path, tmp_path: Path) -> None:
    _, plain = quantize(model, tmp_path / "plain")
    _, coarse = quantize(model, tmp_path / "coarse", target_bits=3.0)
    kinds = [[node.op_type for node in load_graph(path).graph] for path in (plain, coarse)]
    assert kinds[0] == kinds[1]
    assert "MatMulIntegerToFloat" in kinds[0]
    constants = [load_graph(path).graph.initializers for path in (plain, coarse)]
    assert {k: (v.dtype, v.shape) for k, v in constants[0].items()} == {
        k: (v.dtype, v.shape) for k, v in constants[1].items()
    }


def test_a_budget_is_a_goal(model: Path, tmp_path: Path) -> None:
    result, plain = quantize(model, tmp_path / "plain")
    size = packed_size(result.model, tmp_path / "size")
    assert size.graph == deflated_bytes(plain)
    goal = size.graph + round(0.6 * size.weights)
    fitted, made = quantize(model, tmp_path / "fitted", goal)
    assert fitted.metrics["packed_bytes"] + deflated_bytes(made) <= goal
    assert fitted.metrics["packed_bytes"] + deflated_bytes(made) > 0.97 * goal
    assert 0.97 < cosine(model, made) < cosine(model, plain)
    roomy, kept = quantize(model, tmp_path / "roomy", 2 * goal)
    assert "storage_bits" not in roomy.metrics
    assert (kept.parent / "weights.bin").read_bytes() == (plain.parent / "weights.bin").read_bytes()
    left, kept = quantize(model, tmp_path / "left", goal, fit=False)
    assert "storage_bits" not in left.metrics


def test_a_goal_out_of_reach_says_what_is_within(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget.max_size: 2,000 bytes[^\n]*\n  expected: at least \d\d,\d{3} bytes"):
        quantize(model, tmp_path / "work", 2000)
    with pytest.raises(BudgetError, match=r"target_bits: 0.5 bits a weight"):
        quantize(model, tmp_path / "bits", target_bits=0.5)
    assert BudgetError.exit_code == 4


def test_words_that_come_often_get_finer_steps(model: Path, tmp_path: Path) -> None:
    """Steps go with one over the root of a row's share; without ``token_frequency`` all rows are alike."""
    ids = np.concatenate([batch.feed["ids"].ravel() for batch in batches(60, 1)])
    counts = np.bincount(ids, minlength=ROWS)
    often, once = np.argsort(counts)[-3:], np.flatnonzero(counts == 1)
    steps = {}
    for power in (1.0, 0.0):
        _, made = quantize(model, tmp_path / str(power), target_bits=4.0, token_frequency=power)
        scales = load_graph(made).graph.initializers["embedding.table_scale"].const_value
        assert scales is not None
        steps[power] = np.log2(scales.numpy().ravel())
    # Finer than int8 allows is no step, so the words that come most often may fall short of it.
    expected = 0.5 * np.log2(counts[often].mean())
    assert 0.5 * expected < np.median(steps[1.0][once]) - np.median(steps[1.0][often]) < expected + 0.3
    assert np.ptp(steps[0.0]) <= 0.25, "from one eighth of an octave to the next"


def test_the_rate_term_goes_through_the_stage(model: Path, tmp_path: Path) -> None:
    """At equal bits its integers are smaller on finer grids, and the answer is about as near."""
    plain, made = quantize(model, tmp_path / "plain", target_bits=2.5)
    result, rated = quantize(model, tmp_path / "rated", target_bits=2.5, rate_strength=1.0)
    assert result.metrics["storage_bits"] == pytest.approx(plain.metrics["storage_bits"], rel=0.01)
    names = ("first_linear.weight_scale", "embedding.table_scale")
    for name in names:
        before, after = (load_graph(path).graph.initializers[name].const_value for path in (made, rated))
        assert before is not None
        assert after is not None
        assert after.numpy().mean() < before.numpy().mean()
    assert 1 - cosine(model, rated) < 1.2 * (1 - cosine(model, made))


def test_a_graph_without_gradients_is_allocated_by_its_own_errors(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", activation="Softsign")
    result, made = quantize(path, tmp_path / "work", target_bits=4.0)
    assert "Softsign" in result.skipped["gradients"]
    assert result.metrics["storage_bits"] == pytest.approx(4, rel=0.01)
    assert cosine(path, made) > 0.98


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_bits": 9.0}, "target_bits: 9.0"),
        ({"target_bits": 3.0, "weight": "affine"}, "target_bits with other weights"),
        ({"rate_strength": -1.0}, "rate_strength: -1.0"),
        ({"gradient_samples": 0}, "gradient_samples: 0"),
        ({"token_frequency": 1.5}, "token_frequency: 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str, refuses: Any) -> None:
    with refuses(BadInputError, where="recipe", got=words):
        parse_fields(QuantizeInt8, settings, "recipe")
