"""What benchmarks compute and draw by themselves; the figures are theirs to measure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(name: str) -> ModuleType:
        return importlib.import_module(name)

    return run


def test_the_paired_interval_by_hand_and_against_scipy(load: object) -> None:
    measurement = load("measurement")
    truth = np.zeros(8, int)
    reference, ours = np.array([0, 0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 0, 1])
    found = measurement.compare_accuracy(ours, reference, truth)
    assert found["accuracy"] == 5 / 8
    assert found["agreement"] == 5 / 8
    lost = np.array([0, 0, 0, 0, 1, 1, -1, 0])
    assert found["drop"] == 1 / 8
    assert found["drop_interval"] == pytest.approx(1.96 * stats.sem(lost))


def test_ratios_are_of_the_same_round(load: object) -> None:
    assert load("measurement").median_ratio([1, 4, 30], [2, 4, 10]) == 1


def test_bytes_of_a_graph_and_of_its_container(load: object, mlp_onnx: Path) -> None:
    measurement = load("measurement")
    plain = measurement.file_bytes(mlp_onnx)
    assert plain == mlp_onnx.stat().st_size
    assert 0.5 * plain < measurement.packed_bytes(mlp_onnx) < 1.2 * plain


def test_samples_travel_to_another_environment(load: object, tmp_path: Path) -> None:
    samples = load("peer_samples")
    feeds = [{"a": np.arange(n)[None], "b/c": np.ones((1, n), np.float32)} for n in range(1, 13)]
    samples.write_samples(tmp_path / "s.npz", feeds)
    back = samples.read_samples(tmp_path / "s.npz")
    for given, read in zip(feeds, back, strict=True):
        assert list(read) == list(given)
        assert all(np.array_equal(given[name], read[name]) for name in given)


def test_every_recipe_is_one_or_says_what_is_missing(load: object) -> None:
    quantization = load("quantization")

    class Subject:
        kind = "transformer"

    found, missing = quantization.edgeslim_methods(Subject())
    assert found.keys() | missing.keys() == quantization.RECIPES.keys()
    assert {"edgeslim int8", "edgeslim int8, QDQ"} <= found.keys()


def test_the_picture_tells_sides_apart_by_shape_and_label(load: object) -> None:
    chart = load("quantization_chart")
    rows = [
        {"method": "edgeslim <a>", "packed_bytes": 10e6, "cosine": 0.999},
        {"method": "edgeslim b", "packed_bytes": 20e6, "cosine": 0.9995},
        {"method": "edgeslim worse", "packed_bytes": 21e6, "cosine": 0.99},
        {"method": "peer", "packed_bytes": 22e6, "cosine": 0.97},
        {"method": "perfect", "packed_bytes": 23e6, "cosine": 1.0},
    ]
    drawn = ET.fromstring(chart.draw_fronts(rows, {"peer", "perfect"}))
    space = "{http://www.w3.org/2000/svg}"
    texts = [item.text for item in drawn.iter(f"{space}text")]
    assert {"<a>", "b", "worse", "peer", "perfect"} <= set(texts)
    squares = [item for item in drawn.iter(f"{space}rect") if item.get("class") == "o"]
    circles = [item for item in drawn.iter(f"{space}circle") if item.get("class") == "p"]
    assert (len(squares), len(circles)) == (3 + 1, 2 + 1)  # and one each in the legend
    by_x = sorted(float(item.get("x")) for item in squares[1:])
    assert by_x[1] - by_x[0] == pytest.approx(10 * (by_x[2] - by_x[1]), rel=0.03)
    front = next(item.get("d") for item in drawn.iter(f"{space}path") if item.get("class") == "f")
    assert front.count("L") == 1, "what is beaten in both does not lie on the line"
    boxes = [item.get("class") for item in drawn.iter(f"{space}rect")]
    assert boxes[0] is None, "a light ground of its own"


def test_features_of_finished_convolutions_train_the_rest(load: object) -> None:
    """The second half on features is the whole network on images."""
    import torch

    deep = load("deep_compression")
    images = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    torch.manual_seed(0)
    net, batches = deep.LeNet5().eval(), deep.training_data((images, np.arange(5)), (images[:2], np.arange(2)), None)
    made = deep.featured(batches, net.front)
    assert [batch.labels for batch in made.training] == [(0,), (1,), (2,), (3,), (4,)]
    assert len(made.validation) == 2
    with torch.no_grad():
        whole = net(torch.from_numpy(images))
        rest = net.back(torch.from_numpy(np.concatenate([batch.feed["x"] for batch in made.training])))
    torch.testing.assert_close(rest, whole)


def test_the_table_of_several_runs(load: object, capsys: pytest.CaptureFixture[str]) -> None:
    deep = load("deep_compression")
    row = {"net": "LeNet-5", "parameters": 431_080, "bytes": 16_000, "ratio": 107.8, "kept_percent": 3.5}
    deep.show([{**row, "error_percent": error} for error in (0.7, 0.9)], json_wanted=False)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "| LeNet-5 | 431,080 | 16,000 ± 0 | 107.8 (≥ 100; 39) | 0.80 ± 0.10 (≤ 0.8; 0.74) | 3.50 |"
