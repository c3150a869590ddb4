"""How much a model's answer depends on what each of its layers makes, measured by gradients of the float graph.

The answer is what the task compares: pooled and scaled vectors of an encoder, class probabilities of a classifier, all
outputs otherwise. Its squared change is a sum over the layers' outputs of (gradient · change)², so the mean squared
gradient of each channel says what an error in it costs; for embedding tables the whole covariance of the gradients is
kept, and how often each row is looked up. One backward pass a sample serves all layers (``edgeslim.torch_graph``).

Probabilities p of classes, and of next words, enter as 2 √p: the squared change of these is twice the Kullback-Leibler
divergence (to second order), which doesn't hang on the scale of the logits.

Rows that calibration never looks up are not worthless: by Good and Turing (Good 1953), all of them together are looked
up as often as there are rows seen once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Feed, Progress, Task
from edgeslim.torch_graph import Objective, TorchGraph, output_gradients

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lookup", "Sensitivity", "measure_sensitivity", "row_frequencies", "task_objective"]


@dataclass(kw_only=True)
class Lookup:
    """What is seen of an embedding table: times each row is looked up, and the gradients' covariance there."""

    counts: npt.NDArray[np.int64]
    covariance: npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Sensitivity:
    """Sums over ``samples``: ``channels`` the squared gradients of a value, [channels], ``tokens`` its rows.

    ``lookups`` are those of tables, by the name of the value that they give.
    """

    samples: int = 0
    channels: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    lookups: dict[str, Lookup] = field(default_factory=dict)

    def add(self, name: str, gradient: npt.NDArray[np.float32]) -> None:
        """Adds the gradient of one value, channels last."""
        flat = gradient.reshape(-1, gradient.shape[-1]).astype(np.float64)
        self.channels[name] = self.channels.get(name, 0) + np.square(flat).sum(axis=0)
        self.tokens[name] = self.tokens.get(name, 0) + len(flat)


def measure_sensitivity(
    graph: TorchGraph,
    batches: Sequence[Batch],
    task: Task,
    values: Sequence[str],
    tables: Mapping[str, tuple[str, int]],
    *,
    samples: int,
    seed: int,
    progress: Progress,
) -> Sensitivity:
    """Gradients of the task's answer by ``values``, and by what ``tables`` give.

    ``tables`` maps the value that a table gives to the value that indexes it and its number of rows. Gradients come
    from the first ``samples`` batches; look-ups by an input of the graph are counted in all of them.

    Raises:
        BadInputError: a node's setting isn't covered by ``TorchGraph``.
    """
    import torch

    found = Sensitivity()
    names = [*dict.fromkeys([*values, *tables])]
    indices = [index for index, _ in tables.values() if index not in graph.inputs]
    objective = task_objective(task)
    for batch in progress.track(batches[:samples], "gradients"):
        (gradients,) = output_gradients(graph, [batch.feed], names, objective=objective, seed=seed + found.samples)
        looked_up: dict[str, Any] = dict(batch.feed)
        if indices:
            with torch.no_grad():
                kept = graph.run(batch.feed, keep=indices)
            looked_up |= {name: kept[name].numpy() for name in indices}
        found.samples += batch.rows
        for name in values:
            found.add(name, gradients[name])
        for name, (index, rows) in tables.items():
            _add_lookup(found, name, gradients[name], looked_up[index], rows)
    for batch in batches[samples:]:
        for name, (index, rows) in tables.items():
            if index in batch.feed:
                found.lookups[name].counts += _count(batch.feed[index], rows)
    return found


def _count(index: npt.NDArray[Any], rows: int) -> npt.NDArray[np.intp]:
    return np.bincount(np.asarray(index).ravel() % rows, minlength=rows)


def _add_lookup(
    found: Sensitivity, name: str, gradient: npt.NDArray[np.float32], index: npt.NDArray[Any], rows: int
) -> None:
    flat = gradient.reshape(-1, gradient.shape[-1]).astype(np.float64)
    width = flat.shape[1]
    lookup = found.lookups.setdefault(
        name, Lookup(counts=np.zeros(rows, np.int64), covariance=np.zeros((width, width)))
    )
    lookup.covariance += flat.T @ flat
    lookup.counts += _count(index, rows)
    found.tokens[name] = found.tokens.get(name, 0) + len(flat)


def row_frequencies(counts: npt.NDArray[np.int64], power: float = 1.0) -> npt.NDArray[np.float64]:
    """The share of all lookups that each row is expected to have, [rows]; it adds up to 1.

    ``power`` below 1 draws the shares together, for texts whose words aren't those of the calibration; 0 makes all
    rows alike.
    """
    shares = _expected_shares(counts) ** power
    return np.asarray(shares / shares.sum(), np.float64)


def _expected_shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    total, unseen = int(counts.sum()), int((counts == 0).sum())
    if total == 0:
        return np.full(len(counts), 1 / len(counts))
    if unseen == 0:
        return counts / total
    left_over = min(max(int((counts == 1).sum()), 1) / total, 0.5)
    return np.where(counts == 0, left_over / unseen, counts / total * (1 - left_over))


def task_objective(task: Task) -> Objective | None:
    """What a task compares, as a function that gradients flow through; ``None`` for all outputs as they are."""
    facts = task.manifest()
    kind = str(facts.get("task", ""))
    if kind.endswith("classification") or kind == "causal-lm":
        return _probabilities
    if kind != "feature-extraction":
        return None
    pooling, normalize = facts.get("pooling"), bool(facts.get("normalize"))
    named = facts.get("output")

    def embed(outputs: Mapping[str, Tensor], feed: Feed) -> Tensor:
        import torch

        name = str(named) if named in outputs else _vector_output(outputs)
        values, mask = outputs[name], feed.get("attention_mask")
        if values.dim() == 3 and pooling == "cls":
            values = values[:, 0]
        elif values.dim() == 3 and pooling == "mean" and mask is not None:
            weights = torch.as_tensor(np.asarray(mask)).to(values.dtype)[..., None]
            values = (values * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        else:
            values = values.flatten(1)
        return torch.nn.functional.normalize(values, dim=-1) if normalize else values

    return embed


def _vector_output(outputs: Mapping[str, Tensor]) -> str:
    for name in ("sentence_embedding", "last_hidden_state", "token_embeddings"):
        if name in outputs:
            return name
    return next(iter(outputs))


def _probabilities(outputs: Mapping[str, Tensor], feed: Feed) -> Tensor:  # noqa: ARG001
    import torch

    logits = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    return 2 * torch.exp(torch.log_softmax(logits, dim=-1) / 2)
