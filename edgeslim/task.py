"""Tasks: what a model is for, and so which figures say how good it still is.

A task runs the candidate and the float reference over the same held-out batches and compares the outputs. Every task
gives ``drop``, the one number that a budget's ``max_drop`` limits, 0 for a perfect candidate:

======================  ===================================================  =====================================
task                    metrics                                              drop
======================  ===================================================  =====================================
feature-extraction      cosine_mean, cosine_min, spearman, top10_overlap     1 - cosine_mean
text-classification     accuracy, f1, the reference's own, agreement         accuracy lost; unlabelled: disagreement
image-classification    the same                                             the same
causal-lm               perplexity, its ratio to the reference's, agreement  the ratio less 1
module:function         whatever the function returns                        its key ``drop``
======================  ===================================================  =====================================

``resolve_task`` picks one by name or from a model's ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim import metrics
from edgeslim.core import Batch, Feed, Progress, Runner, Task
from edgeslim.custom_task import CustomTask
from edgeslim.datasets.preprocessing import Preprocessing
from edgeslim.errors import BadInputError, UsageError, near_miss
from edgeslim.language_task import CausalLM
from edgeslim.pooling import Pooling

__all__ = [
    "CausalLM",
    "Classification",
    "FeatureExtraction",
    "ImageClassification",
    "TextClassification",
    "is_classifier",
    "is_image_classifier",
    "is_language_model",
    "resolve_task",
]

Array = npt.NDArray[Any]

TASK_NAMES = ("feature-extraction", "text-classification", "image-classification", "causal-lm")
VECTOR_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
MAX_PAIRWISE_ROWS = 2000


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction:
    """Vectors out of a model, compared with the reference's.

    ``pooling`` makes one vector of a text's hidden states ``[B, S, H]``; outputs ``[B, D]`` are taken as they are, and
    with ``none``, or for a model without an attention mask, all values of a sample make its vector. ``output`` names
    the output to take; by default the sentence embedding if there is one, else the hidden states, else the first.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    output: str | None = None
    name = "feature-extraction"

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """``cosine_mean``, ``cosine_min`` and ``samples``; ``spearman`` and ``top10_overlap`` of pairs of samples.

        The latter two need three samples with vectors of one length. They look at the first 2,000 samples, for they
        compare each with every other.

        Raises:
            BadInputError: there are no batches, or an output isn't what the task expects.
        """
        pairs = []
        for batch in progress.track(_some(batches), "evaluate", total=len(batches)):
            other = batch.for_original()
            ours, theirs = candidate(batch.feed), reference(other.feed)
            output, their_vectors = self.compared(theirs, other)
            vectors = (self._embed(_take_output(ours, output, batch.rows), batch), their_vectors)
            if vectors[0].shape != vectors[1].shape:
                raise BadInputError(
                    output, f"vectors {list(vectors[0].shape)}", expected=f"as the reference's {list(vectors[1].shape)}"
                )
            pairs.append(vectors)
        cosines = np.concatenate([metrics.cosine_rows(left, right) for left, right in pairs])
        found = {
            "cosine_mean": float(cosines.mean()),
            "cosine_min": float(cosines.min()),
            "samples": float(len(cosines)),
        }
        if len(cosines) >= 3 and len({left.shape[1] for left, _ in pairs}) == 1:
            left, right = (np.concatenate(side)[:MAX_PAIRWISE_ROWS] for side in zip(*pairs, strict=True))
            found["spearman"] = metrics.similarity_spearman(left, right)
            found["top10_overlap"] = metrics.top_k_overlap(left, right, k=10)
        return found

    def compared(self, outputs: Feed, batch: Batch) -> tuple[str, Array]:
        """The name of the output that is compared, and a vector a sample made of it, ``[B, D]``."""
        output = _choose_output(outputs, self.output, VECTOR_OUTPUTS)
        return output, self._embed(_take_output(outputs, output, batch.rows), batch)

    def drop(self, metrics: Mapping[str, float]) -> float:
        """1 - the mean cosine."""
        return max(0.0, 1.0 - metrics["cosine_mean"])

    def note(self, metrics: Mapping[str, float]) -> str:
        """What ``drop`` stands for, in words for a report."""
        return f"1 - mean cosine with the float model over {metrics['samples']:.0f} samples"

    def manifest(self) -> Mapping[str, object]:
        """How an app makes a vector of the outputs."""
        return {"task": self.name, "pooling": self.pooling, "normalize": self.normalize, "output": self.output}

    def _embed(self, values: Array, batch: Batch) -> Array:
        """One vector a sample: ``values [B, ...]`` to ``[B, D]``."""
        mask = batch.feed.get("attention_mask")
        if values.ndim == 3 and self.pooling == "cls":
            vectors = values[:, 0]
        elif values.ndim == 3 and self.pooling == "mean" and mask is not None:
            if values.shape[:2] != mask.shape:
                raise BadInputError(
                    "output",
                    f"hidden states {list(values.shape)}",
                    expected=f"a vector a token, tokens {list(mask.shape)}",
                )
            vectors = metrics.mean_pool(values, mask)
        else:
            vectors = values.reshape(len(values), -1)
        return metrics.l2_normalize(vectors) if self.normalize else vectors


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A class for each sample. ``labels`` are the class names in the order of the logits, empty if nobody knows."""

    labels: tuple[str, ...] = ()
    name = "classification"

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """``agreement`` with the reference and ``samples``; where the data has labels, accuracy and F1 of both.

        Raises:
            BadInputError: there are no batches, only some of them have labels, or the logits don't fit the labels.
        """
        ours: list[Array] = []
        theirs: list[Array] = []
        truth: list[int] = []
        classes = 2
        for batch in progress.track(_some(batches), "evaluate", total=len(batches)):
            for runner, one, classified in ((candidate, batch, ours), (reference, batch.for_original(), theirs)):
                output, logits = self.compared(runner(one.feed), one)
                classes = self._check_logits(logits, output)
                classified.append(_classify(logits))
            truth.extend(batch.labels)
        mine, other = np.concatenate(ours), np.concatenate(theirs)
        found = {"agreement": metrics.accuracy(mine, other), "samples": float(len(mine))}
        if truth:
            answers = np.array(truth)
            if len(answers) != len(mine):
                raise BadInputError(
                    "data", f"{len(mine)} samples with {len(answers)} labels", expected="a label for each, or none"
                )
            if answers.max() >= classes or answers.min() < 0:
                worst = answers.max() if answers.max() >= classes else answers.min()
                raise BadInputError(
                    "data", f"class index {worst}", expected=f"0 to {classes - 1}, as the logits have it"
                )
            for suffix, guesses in (("", mine), ("_reference", other)):
                found["accuracy" + suffix] = metrics.accuracy(guesses, answers)
                found["f1" + suffix] = metrics.f1_score(guesses, answers, classes)
        return found

    def compared(self, outputs: Feed, batch: Batch) -> tuple[str, Array]:
        """The name of the output that is compared, and its logits, ``[B, C]``."""
        output = _choose_output(outputs, None, ("logits",))
        return output, _take_output(outputs, output, batch.rows)

    def drop(self, metrics: Mapping[str, float]) -> float:
        """The accuracy lost against the reference; without labels, the share of samples classified otherwise."""
        if "accuracy" in metrics:
            return max(0.0, metrics["accuracy_reference"] - metrics["accuracy"])
        return 1.0 - metrics["agreement"]

    def note(self, metrics: Mapping[str, float]) -> str:
        """What ``drop`` stands for, in words for a report."""
        if "accuracy" in metrics:
            return f"accuracy lost against the float model over {metrics['samples']:.0f} labelled samples"
        return f"the data has no labels: share of {metrics['samples']:.0f} samples classified unlike the float model"

    def manifest(self) -> Mapping[str, object]:
        """The class names, by logit."""
        return {"task": self.name, "labels": list(self.labels)}

    def _check_logits(self, logits: Array, output: str) -> int:
        """The number of classes that ``logits [B, C]`` tell apart."""
        if logits.ndim != 2:
            raise BadInputError(output, f"shape {list(logits.shape)}", expected="logits, samples by classes")
        classes = max(2, int(logits.shape[1]))
        if len(self.labels) > 1 and len(self.labels) != classes:
            raise BadInputError(output, f"{classes} classes", expected=f"{len(self.labels)}: " + ", ".join(self.labels))
        return classes


@dataclass(frozen=True, kw_only=True)
class TextClassification(Classification):
    """A class for each text."""

    name = "text-classification"


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Classification):
    """A class for each picture. ``preprocessing`` is what an app does to one first; ``None`` if nobody knows it."""

    preprocessing: Preprocessing | None = None
    name = "image-classification"

    def manifest(self) -> Mapping[str, object]:
        """The class names, by logit, and the preprocessing."""
        table = None if self.preprocessing is None else self.preprocessing.manifest()
        return {**super().manifest(), "preprocessing": table}


def resolve_task(
    name: str | None,
    *,
    config: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    pooling: tuple[Pooling, bool] | None = None,
    folder: Path | None = None,
) -> Task:
    """The task called ``name``; without a name, the one that a model's ``config`` (its ``config.json``) speaks of.

    ``labels`` names the classes where ``config`` doesn't, or otherwise than it does. ``pooling`` is what
    ``pooling_from_folder`` found; a metric of one's own is also looked for in ``folder``.

    Raises:
        UsageError: there is no task of that name.
        BadInputError: a custom metric can't be imported.
    """
    if name is None:
        name = "text-classification" if is_classifier(config or {}) else "feature-extraction"
        name = "image-classification" if is_image_classifier(config or {}) else name
        name = "causal-lm" if is_language_model(config or {}) else name
    if name == "feature-extraction":
        kind, normalize = pooling or ("mean", True)
        return FeatureExtraction(pooling=kind, normalize=normalize)
    if name == "text-classification":
        return TextClassification(labels=tuple(labels) or _read_label_names(config or {}))
    if name == "image-classification":
        return ImageClassification(labels=tuple(labels) or _read_label_names(config or {}))
    if name == "causal-lm":
        return CausalLM()
    if ":" in name:
        return CustomTask(name, folder)
    raise UsageError(
        "task",
        f'no task "{name}"',
        expected="one of " + ", ".join(TASK_NAMES) + ", or module:function for a metric of your own",
        hint=near_miss(name, TASK_NAMES),
    )


def is_classifier(config: Mapping[str, object]) -> bool:
    """Whether a model's ``config.json`` says that it classifies sequences."""
    return _architecture(config).endswith("ForSequenceClassification")


def is_image_classifier(config: Mapping[str, object]) -> bool:
    """Whether a model's ``config.json`` says that it classifies pictures."""
    return _architecture(config).endswith("ForImageClassification")


def is_language_model(config: Mapping[str, object]) -> bool:
    """Whether a model's ``config.json`` says that it continues texts."""
    return _architecture(config).endswith("ForCausalLM")


def _architecture(config: Mapping[str, object]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _some(batches: Sequence[Batch]) -> Sequence[Batch]:
    if not batches:
        raise BadInputError("data", "no samples to evaluate on", expected="one sample or more")
    return batches


def _choose_output(feed: Feed, wanted: str | None, usual: Sequence[str]) -> str:
    if wanted is not None:
        return wanted
    return next((name for name in usual if name in feed), next(iter(feed), ""))


def _take_output(feed: Feed, name: str, rows: int) -> Array:
    if name not in feed:
        raise BadInputError(
            "model", f'no output "{name}"', expected="one of " + ", ".join(feed), hint=near_miss(name, feed)
        )
    values = np.asarray(feed[name])
    if values.ndim == 0 or len(values) != rows:
        raise BadInputError(
            name, f"shape {list(values.shape)}", expected=f"samples along the first axis, {rows} of them"
        )
    return values.reshape(rows, -1) if values.ndim == 1 else values


def _classify(logits: Array) -> Array:
    """The class of each row of ``logits [B, C]``; -1, which is always wrong, where they aren't finite."""
    # One logit tells two classes apart by its sign.
    classes = logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
    return np.where(np.isfinite(logits).all(axis=1), classes, -1)


def _read_label_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """The values of ``id2label``, whose keys are the class indices as strings."""
    table = config.get("id2label")
    if not isinstance(table, Mapping):
        return ()
    try:
        by_index = {int(key): str(value) for key, value in table.items()}
    except (TypeError, ValueError) as error:
        raise BadInputError("config.json: id2label", str(error), expected="class names by index") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise BadInputError("config.json: id2label", f"indices {sorted(by_index)}", expected="0, 1, 2 and so on")
    return tuple(by_index[index] for index in range(len(by_index)))
