"""What a package keeps of the float model's outputs: small, exact to float16, and read with suspicion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.core import Batch, Feed, Quiet
from edgeslim.datasets.recording import MAX_SAMPLES, Recording, load_recording, record_outputs
from edgeslim.errors import BadInputError
from edgeslim.task import Classification, CustomTask, FeatureExtraction


def batches(count: int, length: int = 5) -> list[Batch]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        ids = rng.integers(0, 1000, (1, length + index % 3))
        made.append(Batch(feed={"input_ids": ids, "attention_mask": np.ones_like(ids)}, rows=1))
    return made


def hidden(feed: Feed) -> Feed:
    """Hidden states that depend on every token."""
    angles = feed["input_ids"][..., None] * np.arange(1, 9)
    return {"last_hidden_state": np.sin(angles).astype(np.float32)}


def logits(feed: Feed) -> Feed:
    return {"logits": hidden(feed)["last_hidden_state"].mean(axis=1)[:, :3]}


def test_stands_in_for_the_float_model(tmp_path: Path) -> None:
    task, samples = FeatureExtraction(), batches(20)
    assert record_outputs(hidden, samples, task, tmp_path / "r.npz")
    recording = load_recording(tmp_path / "r.npz")
    assert all(recording.knows(batch) for batch in samples)

    def worse(feed: Feed) -> Feed:
        return {"last_hidden_state": hidden(feed)["last_hidden_state"] + np.float32(0.05)}

    expected = task.evaluate(worse, hidden, samples, Quiet())
    found = task.evaluate(worse, recording, samples, Quiet())
    assert found == pytest.approx(expected, abs=1e-4)
    assert expected["cosine_mean"] < 1 - 1e-3


def test_logits_of_a_classifier(tmp_path: Path) -> None:
    task, samples = Classification(labels=("a", "b", "c")), batches(12)
    assert record_outputs(logits, samples, task, tmp_path / "r.npz")
    assert task.evaluate(logits, load_recording(tmp_path / "r.npz"), samples, Quiet())["agreement"] == 1.0


def test_only_what_was_recorded_is_known(tmp_path: Path) -> None:
    samples = batches(MAX_SAMPLES + 10)
    assert record_outputs(hidden, samples, FeatureExtraction(), tmp_path / "r.npz")
    recording = load_recording(tmp_path / "r.npz")
    assert [recording.knows(batch) for batch in samples] == [True] * MAX_SAMPLES + [False] * 10
    changed = dict(samples[0].feed)
    changed["input_ids"] = changed["input_ids"] + 1
    assert not recording.knows(Batch(feed=changed, rows=1))


def test_the_same_bytes_from_the_same_inputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record_outputs(hidden, batches(9), FeatureExtraction(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _wide(feed: Feed) -> Feed:
    return {"y": np.zeros((1, 100_000), np.float32)}


def _ragged(feed: Feed) -> Feed:
    return {"y": hidden(feed)["last_hidden_state"]}


@pytest.mark.parametrize(
    ("run", "task", "samples"),
    [
        pytest.param(hidden, FeatureExtraction(), batches(2), id="too few samples"),
        pytest.param(_wide, FeatureExtraction(pooling="none"), batches(9), id="too wide"),
        pytest.param(_ragged, FeatureExtraction(pooling="none"), batches(9), id="of several widths"),
    ],
)
def test_what_is_not_kept(tmp_path: Path, run: Any, task: Any, samples: Sequence[Batch]) -> None:
    assert not record_outputs(run, samples, task, tmp_path / "r.npz")
    assert not (tmp_path / "r.npz").exists()


def test_a_metric_of_ones_own_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "recorded_metric.py").write_text("def measure(candidate, reference, batches): return 0.0\n")
    assert not record_outputs(hidden, batches(9), CustomTask("recorded_metric:measure", tmp_path), tmp_path / "r.npz")


def test_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    record_outputs(hidden, batches(9), FeatureExtraction(), path)
    whole = path.read_bytes()
    good = dict(np.load(path))
    cases: dict[str, dict[str, Any]] = {
        "wide": good | {"values": good["values"].astype(np.float64)},
        "short": good | {"keys": good["keys"][:-1]},
        "missing": {"keys": good["keys"]},
        "infinite": good | {"values": np.full_like(good["values"], np.inf)},
        "objects": good | {"output": np.array({"a": 1}, dtype=object)},
    }
    for arrays in cases.values():
        np.savez(path, **arrays)
        with pytest.raises(BadInputError, match=r"r\.npz"):
            load_recording(path)
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInputError, match=r"r\.npz"):
            load_recording(path)
    path.write_bytes(whole)
    assert isinstance(load_recording(path), Recording)
