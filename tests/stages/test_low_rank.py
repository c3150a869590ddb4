"""Low rank on graphs: the two MatMuls, the budget, and int8 after them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import save_graph
from edgeslim.session import open_runner
from edgeslim.stages.low_rank import LowRank
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.quantize_int8 import QuantizeInt8

RANDOM = np.random.default_rng(0)


def thin(rows: int, columns: int, rank: int, noise: float) -> np.ndarray:
    product = RANDOM.normal(size=(rows, rank)) @ RANDOM.normal(size=(rank, columns)) / np.sqrt(rank)
    return (product + noise * RANDOM.normal(size=(rows, columns))).astype(np.float32)


FIRST, SECOND = thin(64, 96, 6, 0.02), thin(80, 96, 80, 0.0)
FEEDS = [{"x": RANDOM.normal(size=(500, 64)).astype(np.float32)}]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "second", "bias"], ["y"], name="two", transB=1),
    ]
    tensors = {"first": FIRST, "second": SECOND, "bias": RANDOM.normal(size=80).astype(np.float32)}
    return write_model(tmp_path / "net.onnx", nodes, {"x": ["n", 64]}, **tensors)


def relative_error(path: Path, run: object) -> float:
    feed = {"x": RANDOM.normal(size=(200, 64)).astype(np.float32)}
    wanted, got = open_runner(path)(feed)["y"], run(feed)["y"]
    assert got.shape == wanted.shape
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


def test_the_thin_layer_is_divided_and_the_full_one_stays(network: Path, tmp_path: Path) -> None:
    stage = LowRank(keep=0.7, multiple=2, min_elements=1)
    result, run = run_stage(stage, network, tmp_path / "work", FEEDS)
    tensors = stored(result)
    assert sorted(tensors) == ["bias", "first.left", "first.right", "second"]
    assert result.changed == 1
    assert "more error for its size" in result.skipped["second"]
    left, right = tensors["first.left"], tensors["first.right"]
    assert left.shape[1] == right.shape[0] == result.metrics["rank_max"]
    assert left.shape[1] % 2 == 0
    used = (left.size + right.size + SECOND.size) / (FIRST.size + SECOND.size)
    assert result.metrics["kept"] == pytest.approx(used)
    assert used <= 0.7
    assert relative_error(network, run) < 0.01


def test_a_gemm_keeps_its_bias(network: Path, tmp_path: Path) -> None:
    result, run = run_stage(
        LowRank(keep=0.6, multiple=1, min_elements=1, keep_dense=("one",)), network, tmp_path / "w", FEEDS
    )
    assert {"second.left", "second.right"} <= set(stored(result))
    assert result.skipped["first"] == "kept by the recipe"
    assert relative_error(network, run) < 0.25


def test_whitening_is_better_on_skewed_inputs(network: Path, tmp_path: Path) -> None:
    scale = np.geomspace(0.05, 4, 64).astype(np.float32)
    weight = RANDOM.normal(size=(64, 96)).astype(np.float32)
    path = write_model(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, w=weight)
    feeds = [{"x": RANDOM.normal(size=(300, 64)).astype(np.float32) * scale}]
    errors = {}
    for method in ("plain", "activation"):
        _, run = run_stage(LowRank(method=method, keep=0.6, multiple=1, min_elements=1), path, tmp_path / method, feeds)
        wanted = feeds[0]["x"] @ weight
        errors[method] = float(np.square(run(feeds[0])["y"] - wanted).sum() / np.square(wanted).sum())
    assert errors["activation"] < 0.5 * errors["plain"]


def test_an_error_budget(network: Path, tmp_path: Path) -> None:
    kept = []
    for bound in (0.001, 0.05, 0.2):
        stage = LowRank(max_error=bound, multiple=1, min_elements=1)
        result, run = run_stage(stage, network, tmp_path / str(bound), FEEDS)
        kept.append(result.metrics["kept"])
        assert relative_error(network, run) < 3 * bound  # each of two layers one after the other
    assert kept == sorted(kept, reverse=True)


def test_both_factors_go_on_to_int8(network: Path, tmp_path: Path) -> None:
    result, divided = run_stage(LowRank(keep=0.7, min_elements=1), network, tmp_path / "work", FEEDS)
    path, _ = save_graph(result.model, tmp_path / "divided")
    quantized, run = run_stage(QuantizeInt8(min_elements=256), path, tmp_path / "int8", FEEDS)
    assert {"one.left.weight_int8", "one.right.weight_int8", "two.weight_int8"} <= set(stored(quantized))
    feed = FEEDS[0]
    wanted = divided(feed)["y"]
    assert float(np.square(run(feed)["y"] - wanted).sum() / np.square(wanted).sum()) < 1e-3


def test_what_is_too_small_is_told(network: Path, tmp_path: Path) -> None:
    result, _ = run_stage(LowRank(multiple=64, min_elements=7000), network, tmp_path / "work", FEEDS)
    assert result.changed == 0
    assert "fewer than min_elements" in result.skipped["first"]
    assert "two factors of rank 64 are no smaller than its 96 × 80" in result.skipped["second"]


def test_refusals(network: Path, tmp_path: Path, refuses: object) -> None:
    with refuses(BadInputError, where="low_rank", got="rank 16", expected="a larger keep"):
        run_stage(LowRank(keep=0.1, multiple=16, min_elements=1), network, tmp_path / "a", FEEDS)
    with refuses(BadInputError, where="calibration", got="no samples"):
        run_stage(LowRank(min_elements=1), network, tmp_path / "b", [])
    for settings in ({"keep": 1.0}, {"max_error": 1.0}, {"multiple": 0}, {"probes": 0}, {"shrinkage": 2.0}):
        with refuses(BadInputError, where="recipe", got=next(iter(settings))):
            parse_fields(LowRank, settings, "recipe")


def test_zeros_of_an_earlier_step_are_not_factorized_away(network: Path, tmp_path: Path, refuses: object) -> None:
    pruned, _ = run_stage(PruneMagnitude(sparsity=0.5, min_elements=1), network, tmp_path / "pruned", FEEDS)
    path, _ = save_graph(pruned.model, tmp_path / "half")
    with refuses(
        BadInputError,
        where="recipe: low_rank",
        got="first, 50% of it zero",
        expected="nothing pruned",
        hint="keep_dense",
    ):
        run_stage(LowRank(keep=0.7, multiple=2, min_elements=1), path, tmp_path / "work", FEEDS)
    stage = LowRank(keep=0.7, multiple=2, min_elements=1, keep_dense=("first", "two"))
    result, _ = run_stage(stage, path, tmp_path / "dense", FEEDS)
    assert result.changed == 0  # nothing of it is divided, so nothing is refused


def test_what_was_factorized_is_pruned_afterwards(network: Path, tmp_path: Path) -> None:
    result, _ = run_stage(LowRank(keep=0.7, multiple=2, min_elements=1), network, tmp_path / "ranks", FEEDS)
    path, _ = save_graph(result.model, tmp_path / "thin")
    after, run = run_stage(PruneMagnitude(sparsity=0.25, min_elements=1), path, tmp_path / "work", FEEDS)
    tensors = stored(after)
    assert {name for name, value in tensors.items() if np.mean(value == 0) > 0.2} == {
        "first.left",
        "first.right",
        "second",
    }
    assert relative_error(network, run) < 0.2
