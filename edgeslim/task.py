"""Tasks: what a model is for, and so which figures say how good it still is.

A task runs the candidate and the float reference over the same held-out batches and compares the outputs. Every task
gives ``drop``, the one number that a budget's ``max_drop`` limits, 0 for a perfect candidate:

======================  ===================================================  =====================================
task                    metrics                                              drop
======================  ===================================================  =====================================
feature-extraction      cosine_mean, cosine_min, spearman, top10_overlap     1 - cosine_mean
text-classification     accuracy, f1, the reference's own, agreement         accuracy lost; unlabelled: disagreement
module:function         whatever the function returns                        its key ``drop``
======================  ===================================================  =====================================

``resolve_task`` picks one by name or from a model's ``config.json``.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from edgeslim import metrics
from edgeslim.core import Batch, Feed, Progress, Runner, Task
from edgeslim.errors import BadInputError, UsageError, near_miss

__all__ = [
    "CustomTask",
    "FeatureExtraction",
    "Pooling",
    "TextClassification",
    "is_classifier",
    "pooling_from_folder",
    "resolve_task",
]

Pooling = Literal["mean", "cls", "none"]
Array = npt.NDArray[Any]

TASK_NAMES = ("feature-extraction", "text-classification")
VECTOR_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
MAX_PAIRWISE_ROWS = 2000
MAX_JSON_BYTES = 1 << 20


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
            ours, theirs = candidate(batch.feed), reference(batch.feed)
            output = _choose_output(theirs, self.output, VECTOR_OUTPUTS)
            vectors = tuple(self._embed(_take_output(feed, output, batch.rows), batch) for feed in (ours, theirs))
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
class TextClassification:
    """A class for each text. ``labels`` are the class names in the order of the logits, empty if nobody knows them."""

    labels: tuple[str, ...] = ()
    name = "text-classification"

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
            for runner, classified in ((candidate, ours), (reference, theirs)):
                feed = runner(batch.feed)
                output = _choose_output(feed, None, ("logits",))
                logits = _take_output(feed, output, batch.rows)
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
            raise BadInputError(
                output, f"{classes} classes", expected=f"{len(self.labels)}, as the model's config names them"
            )
        return classes


class CustomTask:
    """A user's own metric: ``function(candidate, reference, batches)``, named as ``module:function``.

    Both models are given as callables from inputs by name to outputs by name. The function returns figures by name,
    among them ``drop``, or just the drop as a number. The module is also looked for in ``folder``, by default the
    current one.
    """

    def __init__(self, spec: str, folder: Path | None = None) -> None:
        """Imports the function.

        Raises:
            BadInputError: the module can't be imported, or has no such function.
        """
        self.name = spec
        self._metric = _import_function(spec, str(folder.absolute() if folder is not None else Path.cwd()))

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """What the function returns.

        Raises:
            BadInputError: the function raises, or returns anything but numbers with a ``drop``.
        """
        progress.step(f"evaluate with {self.name}")
        try:
            found = self._metric(candidate, reference, _some(batches))
        except BadInputError:
            raise
        except Exception as error:  # it is the user's code
            raise BadInputError(
                self.name, f"it raised {type(error).__name__}: {error}", expected="figures by name, or one number"
            ) from error
        figures: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"drop": found}
        for key, value in figures.items():
            if not isinstance(key, str) or not _is_finite(value):
                raise BadInputError(
                    self.name,
                    f"it returned {key!r}: {value!r}",
                    expected="finite numbers by name, or one number",
                    hint='return {"drop": 0.01, "my_metric": 0.93}',
                )
        if "drop" not in figures:
            raise BadInputError(
                self.name,
                "it returned " + (", ".join(figures) or "nothing"),
                expected='a key "drop": the loss of quality that a budget limits, 0 for a perfect candidate',
                hint='return {"drop": 0.01, "my_metric": 0.93}',
            )
        return {key: float(value) for key, value in figures.items()}

    def drop(self, metrics: Mapping[str, float]) -> float:
        """The function's own ``drop``."""
        return metrics["drop"]

    def note(self, metrics: Mapping[str, float]) -> str:  # noqa: ARG002
        """What ``drop`` stands for, in words for a report."""
        return f"drop as {self.name} computes it"

    def manifest(self) -> Mapping[str, object]:
        """The metric's name."""
        return {"task": "custom", "metric": self.name}


def resolve_task(
    name: str | None,
    *,
    config: Mapping[str, object] | None = None,
    pooling: tuple[Pooling, bool] | None = None,
    folder: Path | None = None,
) -> Task:
    """The task called ``name``; without a name, the one that a model's ``config`` (its ``config.json``) speaks of.

    ``pooling`` is what ``pooling_from_folder`` found; a metric of one's own is also looked for in ``folder``.

    Raises:
        UsageError: there is no task of that name.
        BadInputError: a custom metric can't be imported.
    """
    if name is None:
        name = "text-classification" if is_classifier(config or {}) else "feature-extraction"
    if name == "feature-extraction":
        kind, normalize = pooling or ("mean", True)
        return FeatureExtraction(pooling=kind, normalize=normalize)
    if name == "text-classification":
        return TextClassification(labels=_read_label_names(config or {}))
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
    architectures = config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return first.endswith("ForSequenceClassification")


def pooling_from_folder(folder: Path) -> tuple[Pooling, bool]:
    """How a sentence-transformers folder pools, and whether it scales vectors to length 1.

    A folder without ``modules.json`` says nothing of it: then it is the mean, scaled.

    Raises:
        BadInputError: a malformed file, or a pooling other than the mean or the first token.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", True
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInputError(str(path), f"a {type(modules).__name__}", expected="a list of modules")
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    normalize = "Normalize" in kinds
    if "Pooling" not in kinds:
        return "none", normalize
    inner = (folder / kinds["Pooling"] / "config.json").resolve()
    if not inner.is_relative_to(folder.resolve()):
        raise BadInputError(str(path), f'path "{kinds["Pooling"]}"', expected="a folder inside the model's")
    config = _read_json(inner)
    if not isinstance(config, dict):
        raise BadInputError(str(inner), f"a {type(config).__name__}", expected="a table of pooling modes")
    modes = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = modes or [str(config.get("pooling_mode", "mean"))]
    names: dict[str, Pooling] = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise BadInputError(
            str(inner),
            "pooling " + ", ".join(modes),
            expected="mean or cls",
            hint='task = "module:function" compares the model\'s outputs in your own way',
        )
    return names[modes[0]], normalize


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


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and math.isfinite(cast(float, value))


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


def _read_json(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(
                str(path), f"{path.stat().st_size:,} bytes", expected=f"a JSON file of at most {MAX_JSON_BYTES:,} bytes"
            )
        return cast(object, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable JSON file") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(str(path), f"not valid JSON: {error}") from error


def _import_function(spec: str, folder: str) -> Callable[..., object]:
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise BadInputError("task", f'"{spec}"', expected="module:function, as in my_metrics:rank_loss")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(missing + ".")
        raise BadInputError(
            f"task {spec}",
            f'no module "{missing}"' if own else f'its module imports "{missing}", which isn\'t there',
            expected=f"an installed module or one in {folder}",
        ) from error
    except Exception as error:  # it is the user's code
        raise BadInputError(
            f"task {spec}",
            f"importing it raised {type(error).__name__}: {error}",
            expected="a module that can be imported",
        ) from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise BadInputError(
            f"task {spec}",
            f'no function "{function_name}" in {module_name}',
            expected="one of " + ", ".join(sorted(known)) if known else "a function",
            hint=near_miss(function_name, known),
        )
    return cast(Callable[..., object], function)
