"""Tasks: their figures by hand, the choice between them, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

from edgeslim.core import Batch, Feed, Quiet, Runner, Task
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.errors import BadInputError, EdgeslimError, UsageError
from edgeslim.task import FeatureExtraction, ImageClassification, TextClassification, resolve_task

Item = TypeVar("Item")


class Recording(Quiet):
    """Notes what a task says of its progress."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int | None]] = []

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        self.said.append((what, total))
        yield from items

    def step(self, what: str) -> None:
        self.said.append((what, None))


def batch(rows: int = 1, tokens: int = 2, labels: tuple[int, ...] = (), mask: Any = None) -> Batch:
    ids = np.arange(rows * tokens, dtype=np.int64).reshape(rows, tokens)
    mask = np.ones_like(ids) if mask is None else np.array(mask)
    return Batch(feed={"input_ids": ids, "attention_mask": mask}, rows=rows, labels=labels)


def replay(*values: Any, output: str = "last_hidden_state") -> Runner:
    """A model that gives these outputs, one run after another."""
    remaining = iter(values)
    return lambda _: {output: np.asarray(next(remaining), dtype=np.float32)}


def evaluate(task: Task, candidate: Runner, reference: Runner, *batches: Batch) -> dict[str, float]:
    return dict(task.evaluate(candidate, reference, batches, Quiet()))


def test_mean_pooling_by_hand() -> None:
    task = FeatureExtraction(pooling="mean")
    # The second token is padding: the vectors are (3, 4) and (4, 3), whose cosine is 24 / 25.
    padded = batch(mask=[[1, 0]])
    found = evaluate(task, replay([[[3, 4], [99, -7]]]), replay([[[4, 3], [5, 5]]]), padded)
    assert found == {"cosine_mean": pytest.approx(0.96), "cosine_min": pytest.approx(0.96), "samples": 1.0}
    assert task.drop(found) == pytest.approx(0.04)
    assert "1 samples" in task.note(found)


def test_first_token_pooling_by_hand() -> None:
    found = evaluate(FeatureExtraction(pooling="cls"), replay([[[1, 0], [0, 1]]]), replay([[[1, 0], [1, 0]]]), batch())
    assert found["cosine_mean"] == pytest.approx(1.0)


def test_no_pooling_compares_all_values_and_leaves_out_pairs_of_other_length() -> None:
    short, long = batch(tokens=1), batch(tokens=2)
    values = [[[[1, 0]]], [[[1, 0], [0, 1]]], [[[1, 1], [0, 1]]]]
    found = evaluate(FeatureExtraction(pooling="none"), replay(*values), replay(*values), short, long, long)
    assert found == {"cosine_mean": pytest.approx(1.0), "cosine_min": pytest.approx(1.0), "samples": 3.0}


def test_pairs_are_compared_over_all_batches() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 8))
    noisy = vectors + 0.3 * generator.normal(size=(30, 8))
    cut = [slice(0, 12), slice(12, 30)]
    batches = [batch(rows=12), batch(rows=18)]
    task = FeatureExtraction()
    candidate = replay(*(noisy[rows] for rows in cut), output="sentence_embedding")
    reference = replay(*(vectors[rows] for rows in cut), output="sentence_embedding")
    found = evaluate(task, candidate, reference, *batches)
    assert found["samples"] == 30
    assert 0.8 < found["cosine_min"] < found["cosine_mean"] < 1.0
    assert 0.8 < found["spearman"] < 1.0
    assert 0.5 < found["top10_overlap"] < 1.0
    assert 0.0 < task.drop(found) < 0.2


def test_a_perfect_candidate_drops_nothing() -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 3))
    task = FeatureExtraction()
    found = evaluate(task, replay(vectors), replay(vectors), batch(rows=5))
    assert found["spearman"] == found["top10_overlap"] == 1.0
    assert task.drop(found) == pytest.approx(0.0, abs=1e-12)


def test_a_candidate_of_nan_and_infinity_counts_as_lost() -> None:
    task = FeatureExtraction()
    broken = [[[np.nan, 1], [1, 1]], [[np.inf, 1], [-np.inf, 1]], [[1, 0], [1, 0]]]
    sound = [[[1, 0], [1, 0]]] * 3
    found = evaluate(task, replay(broken), replay(sound), batch(rows=3))
    assert found["cosine_min"] == 0.0
    assert task.drop(found) == pytest.approx(2 / 3)
    assert all(np.isfinite(value) for value in found.values())


def test_a_model_without_a_mask_is_compared_by_all_its_values() -> None:
    images = Batch(feed={"image": np.zeros((2, 3, 4, 4), dtype=np.float32)}, rows=2)
    values = np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3)
    found = evaluate(FeatureExtraction(), replay(values, output="features"), replay(values, output="features"), images)
    assert found["cosine_mean"] == pytest.approx(1.0)


def test_outputs_are_chosen_by_name() -> None:
    def both(_: Feed) -> Feed:
        return {"last_hidden_state": np.ones((1, 2, 2)), "sentence_embedding": np.array([[1.0, 0.0]])}

    def other(_: Feed) -> Feed:
        return {"sentence_embedding": np.array([[0.0, 1.0]]), "last_hidden_state": np.ones((1, 2, 2))}

    assert evaluate(FeatureExtraction(), both, other, batch())["cosine_mean"] == 0.0
    chosen = FeatureExtraction(output="last_hidden_state")
    assert evaluate(chosen, both, other, batch())["cosine_mean"] == pytest.approx(1.0)
    assert chosen.manifest()["output"] == "last_hidden_state"


def test_classification_by_hand() -> None:
    task = TextClassification(labels=("neg", "pos"))
    # Truth 1 1 0 0: the candidate says 1 0 0 1, the reference 1 1 0 1.
    candidate = replay([[0, 1], [1, 0]], [[1, 0], [0, 1]], output="logits")
    reference = replay([[0, 1], [0, 1]], [[1, 0], [0, 1]], output="logits")
    found = evaluate(task, candidate, reference, batch(rows=2, labels=(1, 1)), batch(rows=2, labels=(0, 0)))
    assert found == {
        "agreement": 0.75,
        "samples": 4.0,
        "accuracy": 0.5,
        "f1": 0.5,
        "accuracy_reference": 0.75,
        "f1_reference": pytest.approx(0.8),
    }
    assert task.drop(found) == 0.25
    assert "labelled" in task.note(found)
    assert task.drop({**found, "accuracy": 0.9}) == 0.0


def test_classification_without_labels_falls_back_on_agreement() -> None:
    task = TextClassification()
    found = evaluate(task, replay([[1, 0], [0, 1]]), replay([[1, 0], [2, 1]]), batch(rows=2))
    assert found == {"agreement": 0.5, "samples": 2.0}
    assert task.drop(found) == 0.5
    assert "no labels" in task.note(found)


def test_classification_by_one_logit_and_by_three() -> None:
    found = evaluate(TextClassification(), replay([[-1], [2]]), replay([[-3], [1]]), batch(rows=2, labels=(0, 1)))
    assert (found["accuracy"], found["f1"]) == (1.0, 1.0)
    three = [[3, 1, 2], [0, 1, 2], [0, 3, 2]]
    found = evaluate(
        TextClassification(labels=("a", "b", "c")), replay(three), replay(three), batch(3, labels=(0, 2, 2))
    )
    assert found["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_logits_of_nan_are_wrong() -> None:
    found = evaluate(TextClassification(), replay([[np.nan, 1]]), replay([[0, 1]]), batch(labels=(0,)))
    assert found["accuracy"] == found["agreement"] == 0.0


def test_progress_is_told() -> None:
    progress = Recording()
    batches = (batch(), batch())
    FeatureExtraction().evaluate(replay(*[[[1.0]]] * 2), replay(*[[[1.0]]] * 2), batches, progress)
    TextClassification().evaluate(replay(*[[[1.0, 0]]] * 2), replay(*[[[1.0, 0]]] * 2), batches, progress)
    assert progress.said == [("evaluate", 2), ("evaluate", 2)]


@pytest.mark.parametrize(
    ("task", "candidate", "reference", "batches", "got"),
    [
        (FeatureExtraction(), [], [], (), "no samples to evaluate on"),
        (TextClassification(), [], [], (), "no samples to evaluate on"),
        (FeatureExtraction(output="pooled"), [[[1.0]]], [[[1.0]]], (batch(),), 'no output "pooled"'),
        (FeatureExtraction(), [[[1.0]]], [[[1.0, 2.0]]], (batch(),), "vectors [1, 1]"),
        (FeatureExtraction(), [[[1.0]] * 2], [[[1.0]] * 2], (batch(),), "samples along the first axis, 1 of them"),
        (FeatureExtraction(), [[[[1.0]] * 3]], [[[[1.0]] * 3]], (batch(),), "a vector a token, tokens [1, 2]"),
        (TextClassification(), [[[[1.0]]]], [[[[1.0]]]], (batch(),), "logits, samples by classes"),
        (TextClassification(labels=("a", "b", "c")), [[[1, 0]]], [[[1, 0]]], (batch(),), "2 classes\n  expected: 3"),
        (TextClassification(), [[[1, 0]]], [[[1, 0]]], (batch(labels=(2,)),), "class index 2\n  expected: 0 to 1"),
        (
            TextClassification(),
            [[[1, 0]], [[1, 0]]],
            [[[1, 0]], [[1, 0]]],
            (batch(labels=(1,)), batch()),
            "2 samples with 1 labels",
        ),
    ],
)
def test_evaluate_refuses(task: Task, candidate: Any, reference: Any, batches: tuple[Batch, ...], got: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(got)):
        evaluate(task, replay(*candidate), replay(*reference), *batches)


def test_resolve_task_by_name_and_by_config() -> None:
    classifier = {"architectures": ["BertForSequenceClassification"], "id2label": {"1": "pos", "0": "neg"}}
    assert resolve_task(None, config=classifier) == TextClassification(labels=("neg", "pos"))
    assert resolve_task("feature-extraction", config=classifier) == FeatureExtraction()
    assert resolve_task(None, config={"architectures": ["BertModel"]}, pooling=("cls", False)) == FeatureExtraction(
        pooling="cls", normalize=False
    )
    for config in (None, {}, {"architectures": None}, {"architectures": []}):
        assert resolve_task(None, config=config) == FeatureExtraction()
    assert resolve_task("text-classification") == TextClassification()
    images = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}
    assert resolve_task(None, config=images) == ImageClassification(labels=("cat", "dog"))
    assert resolve_task("image-classification", labels=["a", "b"]) == ImageClassification(labels=("a", "b"))
    assert resolve_task("statistics:mean").name == "statistics:mean"


@pytest.mark.parametrize(
    ("name", "config", "error", "got"),
    [
        ("text-clasification", None, UsageError, 'hint: did you mean "text-classification"?'),
        ("translation", None, UsageError, "or module:function"),
        ("text-classification", {"id2label": {"a": "x"}}, BadInputError, "class names by index"),
        ("text-classification", {"id2label": {"1": "x"}}, BadInputError, "indices [1]"),
    ],
)
def test_resolve_task_refuses(
    name: str, config: dict[str, object] | None, error: type[EdgeslimError], got: str
) -> None:
    with pytest.raises(error, match=re.escape(got)):
        resolve_task(name, config=config)


def test_manifests() -> None:
    assert FeatureExtraction().manifest() == {
        "task": "feature-extraction",
        "pooling": "mean",
        "normalize": True,
        "output": None,
    }
    preprocessing = Preprocessing(size=(4, 4))
    assert ImageClassification(labels=("a",), preprocessing=preprocessing).manifest() == {
        "task": "image-classification",
        "labels": ["a"],
        "preprocessing": preprocessing.manifest(),
    }
    assert ImageClassification().manifest()["preprocessing"] is None
    assert TextClassification(labels=("a", "b")).manifest() == {"task": "text-classification", "labels": ["a", "b"]}
