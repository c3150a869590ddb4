"""The task ``causal-lm``: how well a language model continues running text, beside its float reference.

Perplexity is exp of the mean of -log p over the tokens that count (``edgeslim.datasets.running_text``), each predicted
from all before it in its window. Agreement is the share of them at which candidate and reference put the same token
first, both being given the text itself (teacher forcing), so that one difference doesn't make the rest differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Feed, Progress, Runner
from edgeslim.errors import BadInputError

__all__ = ["CausalLM", "score_window"]

ROWS = 64


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Continues text. ``stride`` is that of the windows of the evaluation data.

    ``end_tokens`` end an answer. ``context_tokens`` is how many tokens the model can read. ``chat`` holds what stands
    between the turns of a conversation, if the model has a template: ``start``, ``reply`` and ``next``.
    """

    stride: int = 64
    end_tokens: tuple[int, ...] = ()
    context_tokens: int | None = None
    chat: Mapping[str, str] | None = None
    name = "causal-lm"

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """``perplexity``, ``perplexity_reference``, ``perplexity_ratio``, ``agreement`` and ``tokens``.

        Raises:
            BadInputError: there are no batches, or the logits aren't a model's for these tokens.
        """
        if not batches:
            raise BadInputError("data", "no samples to evaluate on", expected="one sample or more")
        ours = theirs = 0.0
        agreed = tokens = 0
        for batch in progress.track(batches, "evaluate", len(batches)):
            ours_lost, our_first = score_window(candidate(batch.feed), batch)
            theirs_lost, their_first = score_window(reference(batch.feed), batch)
            ours, theirs = ours + float(ours_lost.sum()), theirs + float(theirs_lost.sum())
            agreed += int(np.count_nonzero(our_first == their_first))
            tokens += len(our_first)
        mine, other = (math.exp(min(lost / max(tokens, 1), 700.0)) for lost in (ours, theirs))
        return {
            "perplexity": mine,
            "perplexity_reference": other,
            "perplexity_ratio": mine / other,
            "agreement": agreed / max(tokens, 1),
            "tokens": float(tokens),
        }

    def drop(self, metrics: Mapping[str, float]) -> float:
        """The perplexity ratio less 1."""
        return max(0.0, metrics["perplexity_ratio"] - 1)

    def note(self, metrics: Mapping[str, float]) -> str:
        """What ``drop`` stands for, in words for a report."""
        return f"perplexity over the float model's, less 1, on {metrics['tokens']:,.0f} tokens of running text"

    def manifest(self) -> Mapping[str, object]:
        """How an app ends an answer and writes a conversation."""
        chat = None if self.chat is None else dict(self.chat)
        return {
            "task": self.name,
            "stride": self.stride,
            "end_tokens": list(self.end_tokens),
            "context_tokens": self.context_tokens,
            "chat": chat,
        }


def score_window(outputs: Feed, batch: Batch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """-log p of each token of ``batch`` that counts, and the token that the model puts first in its place.

    Raises:
        BadInputError: no logits for these tokens, or logits that aren't finite.
    """
    tokens = batch.feed["input_ids"][0]
    logits = outputs.get("logits")
    if logits is None or logits.ndim != 3 or logits.shape[1] != len(tokens):
        got = "no logits" if logits is None else f"logits {list(logits.shape)}"
        raise BadInputError("model", got, expected=f"logits [1, {len(tokens)}, vocabulary]")
    count = len(tokens) - 1 if batch.scored is None else min(batch.scored, len(tokens) - 1)
    targets, rows = tokens[len(tokens) - count :], logits[0, len(tokens) - count - 1 : -1]
    if count and not 0 <= int(targets.max()) < rows.shape[1]:
        raise BadInputError("data", f"token {int(targets.max())}", expected=f"tokens below {rows.shape[1]}")
    lost: list[npt.NDArray[Any]] = []
    first: list[npt.NDArray[Any]] = []
    for start in range(0, count, ROWS):
        part = np.asarray(rows[start : start + ROWS], np.float32)
        best = part.argmax(axis=1)
        peak = np.take_along_axis(part, best[:, None], axis=1)
        total = np.log(np.exp(part - peak).sum(axis=1, dtype=np.float64))
        wanted = np.take_along_axis(part, targets[start : start + ROWS, None], axis=1)
        lost.append(total - (wanted - peak)[:, 0].astype(np.float64))
        first.append(best)
    if not count:
        return np.empty(0), np.empty(0, np.intp)
    made = np.concatenate(lost)
    if not np.isfinite(made).all():
        raise BadInputError("model", "logits that are NaN or infinite", expected="finite logits")
    return made, np.concatenate(first)
