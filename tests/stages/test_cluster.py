"""Codebooks on graphs: few values, zeros kept, the forms that run, and the bytes that the container makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.algorithms.clustering import fit_codebook
from edgeslim.codec import Segment, encode_container
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph
from edgeslim.session import open_runner
from edgeslim.stages.cluster import Cluster

RANDOM = np.random.default_rng(0)
FEEDS = [{"ids": RANDOM.integers(0, 50, (1, 12))}]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A table that a last MatMul shares, a dense weight, a pruned one."""
    pruned = np.where(RANDOM.random((32, 40)) < 0.8, 0, RANDOM.normal(size=(32, 40)))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embed"),
        helper.make_node("MatMul", ["rows", "dense"], ["h"], name="one"),
        helper.make_node("MatMul", ["rows", "pruned"], ["p"], name="two"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"], name="head"),
    ]
    tensors = {"table": RANDOM.normal(size=(50, 32)), "dense": RANDOM.normal(size=(32, 32)), "pruned": pruned}
    return write_model(
        tmp_path / "net.onnx", nodes, {"ids": [1, "n"]}, outputs=("y", "p"),
        **{name: array.astype(np.float32) for name, array in tensors.items()},
    )  # fmt: skip


def reference_outputs(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = tensors["table"][FEEDS[0]["ids"]]
    return (rows @ tensors["dense"]) @ tensors["table"].T, rows @ tensors["pruned"]


def test_few_values_and_the_same_zeros(network: Path, tmp_path: Path) -> None:
    result, run = run_stage(Cluster(bits=3), network, tmp_path / "work", FEEDS)
    tensors = stored(result)
    pruned = load_graph(network).graph.initializers["pruned"].const_value.numpy()
    for name in ("table", "dense", "pruned"):
        assert len(np.unique(tensors[name])) == 8
    assert np.array_equal(tensors["pruned"] == 0, pruned == 0)
    for got, wanted in zip(run(FEEDS[0]).values(), reference_outputs(tensors), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("decode", ["float16", "int8"])
def test_the_forms_that_run_give_the_same_values(network: Path, tmp_path: Path, decode: str) -> None:
    plain = stored(run_stage(Cluster(bits=3), network, tmp_path / "plain", FEEDS)[0])
    result, run = run_stage(Cluster(bits=3, decode=decode), network, tmp_path / "work", FEEDS)
    tensors = stored(result)
    assert {tensors[f"{name}.clustered"].dtype.name for name in ("table", "dense", "pruned")} == {decode}
    assert not {"table", "dense", "pruned"} & set(tensors)
    values = {}
    for name in ("table", "dense", "pruned"):
        values[name] = tensors[f"{name}.clustered"].astype(np.float32) * tensors.get(f"{name}.scale", np.float32(1))
        step = np.abs(plain[name]).max() / (127 if decode == "int8" else 2048)
        assert np.abs(values[name] - plain[name]).max() <= 1.01 * step
        assert np.array_equal(values[name] == 0, plain[name] == 0)
    assert list(run(FEEDS[0])) == ["y", "p"]
    for got, wanted in zip(run(FEEDS[0]).values(), reference_outputs(values), strict=True):
        assert got.dtype == np.float32
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_a_gathered_table_may_be_the_output(tmp_path: Path) -> None:
    table = RANDOM.normal(size=(50, 32)).astype(np.float32)
    path = write_model(tmp_path / "t.onnx", [helper.make_node("Gather", ["t", "ids"], ["y"])], {"ids": ["n"]}, t=table)
    result, run = run_stage(Cluster(decode="int8"), path, tmp_path / "work", [])
    ids = np.array([3, 1])
    assert run({"ids": ids})["y"] == pytest.approx(table[ids], abs=0.5)
    assert stored(result)["t.clustered"].dtype == np.int8


def test_groups_have_codebooks_of_their_own(tmp_path: Path) -> None:
    weight = RANDOM.normal(size=(64, 32)).astype(np.float32)
    weight[:, :16] *= 0.01
    path = write_model(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, w=weight)
    one = stored(run_stage(Cluster(bits=4), path, tmp_path / "one", [])[0])["w"]
    two = stored(run_stage(Cluster(bits=4, groups=2), path, tmp_path / "two", [])[0])["w"]
    assert len(np.unique(two)) == 32
    small = np.s_[:, :16]
    assert np.square(two - weight)[small].sum() < 0.05 * np.square(one - weight)[small].sum()


def test_importance_lowers_the_error_of_the_output(tmp_path: Path) -> None:
    weight = RANDOM.normal(size=(64, 32)).astype(np.float32)
    weight[:8] *= 0.1  # small weights of large inputs
    scale = np.where(np.arange(64) < 8, 30, 0.3).astype(np.float32)
    path = write_model(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, w=weight)
    feed = {"x": RANDOM.normal(size=(200, 64)).astype(np.float32) * scale}
    errors = []
    for importance in ("none", "activation", "fisher"):
        _, run = run_stage(Cluster(bits=3, importance=importance), path, tmp_path / importance, [feed])
        errors.append(float(np.square(run(feed)["y"] - open_runner(path)(feed)["y"]).sum()))
    assert max(errors[1:]) < 0.3 * errors[0]


def test_the_container_sees_the_codebook() -> None:
    """90 % zeros and 15 other floats: under an eighth of the entropy coder's best on bytes of floats."""
    weight = np.where(RANDOM.random((300, 784)) < 0.9, 0, RANDOM.normal(size=(300, 784))).astype(np.float32)
    book = fit_codebook(weight, 4, keep_zero=True)
    share = np.bincount(book.index.ravel()) / weight.size
    entropy_bytes = float(-(share * np.log2(share)).sum()) * weight.size / 8
    segment = Segment(name="w", data=book.decode(), dtype="float32", shape=weight.shape)
    coded = len(encode_container([segment]))
    assert coded < 1.02 * entropy_bytes + 300
    dense = Segment(name="w", data=weight, dtype="float32", shape=weight.shape)
    assert coded < 0.3 * len(encode_container([dense]))


def test_refusals(network: Path, tmp_path: Path, refuses: object) -> None:
    with refuses(BadInputError, where="calibration", got="no samples"):
        run_stage(Cluster(importance="activation"), network, tmp_path / "work", [])
    for settings in ({"bits": 9}, {"bits": 4, "groups": 17}, {"min_elements": 0}):
        with refuses(BadInputError, where="recipe", got=list(settings)[-1]):
            parse_fields(Cluster, settings, "recipe")
