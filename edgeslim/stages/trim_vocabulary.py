"""Vocabulary trimming: the embedding table keeps the rows of the tokens that a corpus uses, and the tokenizer with it.

Tokens stay by how often ``corpus`` uses them, beside special tokens and single characters, so that every text can still
be encoded: a word whose token went falls into pieces (``edgeslim.datasets.vocabulary``). Whoever runs the package uses
the trimmed tokenizer, which lies in it; the loss of quality is measured text by text against the float original with
its own tokenizer.

The step's metrics, on a tenth of the corpus that wasn't counted (``in_domain``) and on ``outside`` (by default English
from Python's manual): ``lost``, the share of the original's tokens that are no longer in the vocabulary, ``unknown``,
the share of unknown ones afterwards, and ``length``, how much longer texts become.

Only the table that token ids look up is cut. A graph that does anything else with them (looks for padding ids, has one
table for input and output) is refused.

Layout: table [tokens, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx_ir as ir
from onnx_ir.passes import common as passes

from edgeslim.core import Context, StepResult
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.vocabulary import (
    Vocabulary,
    choose_tokens,
    count_tokens,
    encode_plain,
    read_vocabulary,
    write_trimmed,
)
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph_weights import Weight, add_constant, find_weights, node_name

__all__ = ["TrimVocabulary"]

HELD_OUT = 10
OUTSIDE_TEXTS = 300
IDS = "input_ids"


@dataclass(frozen=True, kw_only=True)
class TrimVocabulary:
    """Keeps ``keep`` tokens, or as many as cover the share ``coverage`` of the corpus's tokens.

    ``corpus`` and ``outside`` are files of texts, as those of ``[data]``, relative to the project's folder.
    """

    level: ClassVar[Literal["torch", "graph", "either"]] = "graph"

    corpus: str
    keep: int | None = None
    coverage: float | None = None
    outside: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.coverage is None):
            raise ValueError("keep and coverage, expected one of them")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep: {self.keep}, expected at least 1")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ValueError(f"coverage: {self.coverage}, expected more than 0 and at most 1")

    def run(self, model: ir.Model, ctx: Context) -> StepResult[ir.Model]:
        """Cuts the table of ``model`` in place, and writes the tokenizer.

        Raises:
            BadInputError: the tokenizer or the graph can't be trimmed, or the corpus can't be used.
        """
        if ctx.tokenizer is None or ctx.folder is None:
            raise BadInputError(
                "recipe: trim_vocabulary",
                "samples that no tokenizer made",
                expected="a model with a tokenizer, and texts as data",
            )
        vocabulary = read_vocabulary(ctx.tokenizer)
        table = _find_table(model, vocabulary.rows)
        texts = [example.text for example in load_examples(ctx.folder / self.corpus, text_column=self.text_column)]
        counted = [text for index, text in enumerate(texts) if index % HELD_OUT]
        held = texts[::HELD_OUT]
        counts = count_tokens(vocabulary, counted)
        kept = choose_tokens(vocabulary, counts, self._count(vocabulary, counts))
        folder = ctx.work_dir / "tokenizer"
        state = write_trimmed(vocabulary, kept, ctx.tokenizer, folder)
        rows = add_constant(model.graph, f"{table.name}.kept", table.array[kept])
        for use in table.uses:
            use.node.replace_input_with(0, rows)
        passes.RemoveUnusedNodesPass()(model)
        outside = (
            builtin_text(OUTSIDE_TEXTS, ctx.seed)
            if self.outside is None
            else load_examples(ctx.folder / self.outside, text_column=self.text_column)
        )
        metrics = {"tokens_before": float(len(table.array)), "tokens": float(len(kept))}
        sets: dict[str, Sequence[str]] = {"in_domain": held, "outside": [example.text for example in outside]}
        for name, some in sets.items():
            metrics |= {f"{name}_{key}": value for key, value in _compare(vocabulary, state, set(kept), some).items()}
        return StepResult(model=model, changed=1, metrics=metrics, tokenizer=folder)

    def _count(self, vocabulary: Vocabulary, counts: Any) -> int:
        if self.keep is not None:
            return self.keep
        assert self.coverage is not None
        required = {vocabulary.tokens[token] for token in vocabulary.required}
        covered, wanted = sum(counts[number] for number in required), self.coverage * sum(counts.values())
        count = len(required)
        for number, times in counts.most_common():
            if covered >= wanted:
                break
            if number not in required:
                covered += times
                count += 1
        return count


def _find_table(model: ir.Model, rows: int) -> Weight:
    """The table that token ids alone look up, with at least ``rows``."""
    ids = next((value for value in model.graph.inputs if value.name == IDS), None)
    if ids is None:
        raise BadInputError("graph", f'no input "{IDS}"', expected="a model that takes token ids")
    skipped: dict[str, str] = {}
    tables = [
        weight
        for weight in find_weights(model, skipped, kinds=("Gather",))
        if all(use.node.inputs[1] is ids for use in weight.uses)
    ]
    lookups = {use.node for weight in tables for use in weight.uses}
    other = [node for node, _ in ids.uses() if node not in lookups and node.op_type != "Shape"]
    if len(tables) != 1 or other:
        got = (
            f"{node_name(other[0])}, a {other[0].op_type}, takes token ids, too"
            if other
            else "no table for token ids alone"
        )
        shared = next((f"{name}: {reason}" for name, reason in skipped.items() if "embed" in name), "")
        raise BadInputError("graph", got + (f" ({shared})" if shared else ""), expected="ids that look up one table")
    if len(tables[0].array) < rows:
        raise BadInputError(
            tables[0].name, f"{len(tables[0].array):,} rows", expected=f"the {rows:,} of the tokenizer's vocabulary"
        )
    return tables[0]


def _compare(vocabulary: Vocabulary, state: Any, kept: set[int], texts: Sequence[str]) -> dict[str, float]:
    before, after = encode_plain(vocabulary.state, texts), encode_plain(state, texts)
    unknown = str(state["model"].get("unk_token") or "")
    numbers = (vocabulary.tokens.get(unknown, -1), state["model"]["vocab"].get(unknown, -1))
    totals = [max(1, sum(map(len, some))) for some in (before, after)]
    return {
        "lost": sum(number not in kept for ids in before for number in ids) / totals[0],
        "unknown_before": sum(ids.count(numbers[0]) for ids in before) / totals[0],
        "unknown": sum(ids.count(numbers[1]) for ids in after) / totals[1],
        "length": totals[1] / totals[0],
    }
