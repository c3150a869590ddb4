"""Text out of a decoder with a KV cache: greedy, or from the likeliest tokens that together have probability p.

A prompt goes in by pieces, which bounds the memory that its logits take; the cache that comes out of one run goes into
the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Feed, Runner
from edgeslim.decoders.sampling import Sampling, SplitMix64
from edgeslim.errors import BadInputError
from edgeslim.session import PAST_LENGTH, element_dtype

__all__ = ["CachedDecoder", "empty_cache", "generate", "stream_text"]

PIECE = 64


def empty_cache(inputs: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """The cache before the first token, for a signature's ``inputs``: [1, kv_heads, 0, head_width] each, or its room.

    Raises:
        BadInputError: they aren't those of a decoder.
    """
    found = {str(item["name"]): item["shape"] for item in inputs if str(item["name"]).startswith("past_key_values.")}
    if not found or any(len(shape) != 4 or None in (shape[1], shape[3]) for shape in found.values()):
        names = ", ".join(str(item["name"]) for item in inputs)[:200]
        raise BadInputError(
            "model", f"the inputs {names}", expected="input_ids and past_key_values.*, as a decoder has"
        )
    kinds = {str(item["name"]): element_dtype(str(item.get("type", "tensor(float)"))) for item in inputs}
    return {name: np.zeros((1, shape[1], shape[2] or 0, shape[3]), kinds[name]) for name, shape in found.items()}


class CachedDecoder:
    """A decoder and its cache: tokens go in, and the logits of what follows them come out.

    ``context`` is how many tokens the model can read; ``None``: it isn't known. A cache of a fixed length has room for
    no more than that.
    """

    def __init__(self, run: Runner, cache: Feed, context: int | None = None) -> None:
        self._run = run
        self._cache = dict(cache)
        self._room = next((int(value.shape[2]) for value in cache.values()), 0)
        self.context = min(context or self._room, self._room) if self._room else context
        self.length = 0

    def check_room(self, tokens: int) -> None:
        """Whether ``tokens`` in all fit the context.

        Raises:
            BadInputError: they don't.
        """
        if self.context is not None and tokens > self.context:
            raise BadInputError(
                "prompt", f"{tokens} tokens in all", expected=f"{self.context}, the model's context", hint="start anew"
            )

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [vocabulary] of the token after ``tokens``, which follow those that were fed before.

        Raises:
            BadInputError: there are no tokens, or more than the context holds.
        """
        if not tokens:
            raise BadInputError("prompt", "no tokens", expected="at least one")
        self.check_room(self.length + len(tokens))
        outputs: Feed = {}
        for start in range(0, len(tokens), PIECE):
            piece = np.array([tokens[start : start + PIECE]], np.int64)
            counted = {PAST_LENGTH: np.array([self.length], np.int64)} if self._room else {}
            outputs = self._run({"input_ids": piece, **counted, **self._cache})
            self._cache = {name: outputs[name.replace("past_key_values", "present", 1)] for name in self._cache}
            self.length += piece.shape[1]
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

    They also end where the decoder's context is full.

    Raises:
        BadInputError: the prompt is empty, or longer than the context.
    """
    chosen = sampling or Sampling()
    generator = SplitMix64(chosen.seed)
    waiting = list(prompt)
    for _ in range(max_tokens):
        token = chosen.choose(decoder.feed(waiting), generator)
        if token in end_tokens:
            return
        yield token
        waiting = [token]
        if decoder.context is not None and decoder.length >= decoder.context:
            return


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
