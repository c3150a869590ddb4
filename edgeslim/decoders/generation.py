"""Text out of a decoder with a KV cache: greedy, or from the likeliest tokens that together have probability p.

Nucleus sampling is that of Holtzman et al. 2019, arXiv 1904.09751. A prompt goes in by pieces, which bounds the memory
that its logits take; the cache that comes out of one run goes into the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Feed, Runner
from edgeslim.errors import BadInputError

__all__ = ["CachedDecoder", "Sampling", "empty_cache", "generate", "stream_text"]

PIECE = 64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; else one of those that together have probability ``top_p``."""

    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature: {self.temperature}, expected 0 to 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}, expected more than 0 and at most 1")

    def choose(self, logits: npt.NDArray[np.float32], generator: np.random.Generator) -> int:
        """A token for ``logits`` [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        order = np.argsort(-weights, kind="stable")
        shares = weights[order] / weights.sum()
        kept = int(np.searchsorted(np.cumsum(shares), self.top_p)) + 1
        shares = shares[:kept] / shares[:kept].sum()
        return int(order[:kept][min(int(np.searchsorted(np.cumsum(shares), generator.random())), len(shares) - 1)])


def empty_cache(inputs: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[np.float32]]:
    """The cache before the first token, for a signature's ``inputs``: [1, kv_heads, 0, head_width] each.

    Raises:
        BadInputError: they aren't those of a decoder.
    """
    found = {str(item["name"]): item["shape"] for item in inputs if str(item["name"]).startswith("past_key_values.")}
    if not found or any(len(shape) != 4 or None in (shape[1], shape[3]) for shape in found.values()):
        names = ", ".join(str(item["name"]) for item in inputs)[:200]
        raise BadInputError(
            "model", f"the inputs {names}", expected="input_ids and past_key_values.*, as a decoder has"
        )
    return {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in found.items()}


class CachedDecoder:
    """A decoder and its cache: tokens go in, and the logits of what follows them come out."""

    def __init__(self, run: Runner, cache: Feed) -> None:
        self._run = run
        self._cache = dict(cache)
        self.length = 0

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [vocabulary] of the token after ``tokens``, which follow those that were fed before.

        Raises:
            BadInputError: there are no tokens.
        """
        if not tokens:
            raise BadInputError("prompt", "no tokens", expected="at least one")
        outputs: Feed = {}
        for start in range(0, len(tokens), PIECE):
            piece = np.array([tokens[start : start + PIECE]], np.int64)
            outputs = self._run({"input_ids": piece, **self._cache})
            self._cache = {name: outputs[name.replace("past_key_values", "present", 1)] for name in self._cache}
        self.length += len(tokens)
        return np.asarray(outputs["logits"][0, -1], np.float32)


def generate(
    decoder: CachedDecoder,
    prompt: Sequence[int],
    *,
    end_tokens: Sequence[int],
    max_tokens: int,
    sampling: Sampling | None = None,
) -> Iterator[int]:
    """Tokens that continue ``prompt``, the one that ends the answer left out. The last one isn't fed to the decoder.

    Raises:
        BadInputError: the prompt is empty.
    """
    chosen = sampling or Sampling()
    generator = np.random.default_rng(chosen.seed)
    waiting = list(prompt)
    for _ in range(max_tokens):
        token = chosen.choose(decoder.feed(waiting), generator)
        if token in end_tokens:
            return
        yield token
        waiting = [token]


def stream_text(tokens: Iterator[int], tokenizer: Any) -> Iterator[str]:
    """The text of ``tokens`` in pieces of whole characters, as soon as each is known."""
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not text.endswith("\ufffd"):  # the bytes of a character that isn't whole yet
            yield text
            waiting = []
    if waiting:
        yield tokenizer.decode(waiting, skip_special_tokens=True, clean_up_tokenization_spaces=False)
