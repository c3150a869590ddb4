"""Running text in windows of tokens, as a language model is measured on it.

A window has ``length`` tokens and begins ``stride`` tokens after the one before. All of it is read, and of each window
but the first only the last ``stride`` tokens count: so every token of the text counts once, and has at least ``length -
stride`` tokens before it, those at the beginning of the text excepted. The first token of all predicts, and isn't
predicted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.core import Batch, Feed
from edgeslim.errors import BadInputError

__all__ = ["cut_windows", "encode_text", "read_running_text", "refuse_shared_text", "split_windows"]

MAX_TEXT_BYTES = 64 << 20
WORD = re.compile(r"\w+")
SHARED_WORDS = 13
"""Words in a row from which on what stands in two texts isn't chance (Brown et al. 2020, arXiv 2005.14165)."""


def read_running_text(path: Path) -> str:
    """The text of a ``.txt`` file.

    Raises:
        BadInputError: another kind of file, one that is too long, or not UTF-8.
    """
    if path.suffix.lower() != ".txt":
        raise BadInputError(
            str(path), f"a file ending in {path.suffix or 'nothing'}", expected="running text in a .txt"
        )
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise BadInputError(str(path), f"{path.stat().st_size:,} bytes", expected=f"at most {MAX_TEXT_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(str(path), str(error)[:200], expected="a readable file of UTF-8 text") from error


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """The tokens of ``text``, without any that mark its beginning or end."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def cut_windows(
    tokens: Sequence[int], *, length: int, stride: int, empty: Mapping[str, Any] | None = None
) -> tuple[Batch, ...]:
    """Windows over ``tokens``, each a batch of one with ``scored`` tokens that count; the last may be shorter.

    ``empty`` are inputs that all windows have besides ``input_ids``, such as a KV cache that holds nothing.

    Raises:
        BadInputError: there are fewer than two tokens.
        ValueError: not 0 < stride <= length.
    """
    if not 0 < stride <= length:
        raise ValueError(f"stride: {stride}, expected 1 to {length}")
    if len(tokens) < 2:
        raise BadInputError("data", f"{len(tokens)} tokens", expected="a text of at least 2")
    batches = []
    end = 0
    for start in range(0, len(tokens), stride):
        part = tokens[start : start + length]
        scored = start + len(part) - max(end, 1)
        feed: Feed = {"input_ids": np.array([part], np.int64), **(empty or {})}
        batches.append(Batch(feed=feed, rows=1, scored=scored))
        end = start + len(part)
        if end == len(tokens):
            break
    return tuple(batches)


def refuse_shared_text(path: Path, text: str, evaluation: str) -> None:
    """Whether the training text ``text``, of the file ``path``, shares no 13 words in a row with what evaluates.

    Lines, case and punctuation don't count: a text that was wrapped anew is the same text.

    Raises:
        BadInputError: it does.
    """
    known = set(_runs(evaluation))
    shared = [run for run in _runs(text) if run in known]
    if shared:
        raise BadInputError(
            str(path),
            f"{len(shared)} times {SHARED_WORDS} words in a row that are evaluation data, too: {shared[0][:80]!r}",
            expected="a training text that shares nothing with the evaluation text",
            hint="take them out of one of the two files",
        )


def _runs(text: str) -> Iterator[str]:
    """All runs of ``SHARED_WORDS`` words; a text that has fewer is one."""
    words = WORD.findall(text.casefold())
    for start in range(max(1, len(words) - SHARED_WORDS + 1)) if words else ():
        yield " ".join(words[start : start + SHARED_WORDS])


def split_windows(batches: Sequence[Batch], calibration: int) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """The first ``calibration`` windows and the rest, less one between the two, which overlaps both."""
    return tuple(batches[:calibration]), tuple(batches[calibration + 1 :])
