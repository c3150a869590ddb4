"""How fast a language model answers on this host: the time to the first token, and tokens a second with its KV cache.

Both are of the loop that the package's apps run: the prompt goes in by pieces, one token after the other follows. Model
and float reference take turns, as in ``latency``; here too no figure is the target's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np

from edgeslim.checks.latency import describe_host
from edgeslim.core import Artifact, Feed, Finding
from edgeslim.decoders.generation import CachedDecoder, empty_cache
from edgeslim.session import OrtRunner, open_runner
from edgeslim.target import TargetProfile

__all__ = ["check_generation", "has_cache"]

TOKENS = 16
PROMPTS = 3


def has_cache(feed: Feed) -> bool:
    """Whether these are the inputs of a decoder with a KV cache."""
    return any(name.startswith("past_key_values.") for name in feed)


def check_generation(artifact: Artifact, feed: Feed, target: TargetProfile) -> Iterator[Finding]:
    """Findings ``first_token_ms``, ``token_p50_ms``, ``tokens_per_second``, and beside a reference ``token_ratio``.

    ``feed`` is a prompt, ``input_ids`` [1, length], with the inputs of an empty cache.

    Raises:
        BadInputError: ONNX Runtime refuses one of the models, or a run.
    """
    threads = target.runtime.threads
    where = describe_host(threads)
    prompt = [int(token) for token in feed["input_ids"][0]]
    models = [artifact.model, *([artifact.reference] if artifact.reference is not None else [])]
    runners = [open_runner(model, threads=threads) for model in models]
    room = next(iter(empty_cache(runners[0].signature()["inputs"]).values())).shape[2]
    count = min(TOKENS, room - 1) if room else TOKENS
    prompt = prompt[: max(1, room - count)] if room else prompt
    firsts: list[list[float]] = [[] for _ in models]
    tokens: list[list[float]] = [[] for _ in models]
    for number in range(PROMPTS + 1):  # the first round warms up
        order = list(zip(runners, firsts, tokens, strict=True))
        for runner, first, rest in order if number % 2 else reversed(order):
            first_ms, token_ms = _time_answer(runner, prompt, count)
            if number:
                first.append(first_ms)
                rest += token_ms
    p50 = statistics.median(tokens[0])
    count = f"{PROMPTS} answers of {TOKENS} tokens"
    yield Finding.at_most(
        "latency", "first_token_ms", statistics.median(firsts[0]), "ms", None, where,
        f"a prompt of {len(prompt)} tokens, by pieces, and the choice of the token; median of {PROMPTS}", firsts[0],
    )  # fmt: skip
    yield Finding.at_most("latency", "token_p50_ms", p50, "ms", None, where, f"with the KV cache; {count}")
    yield Finding.at_most("latency", "tokens_per_second", 1000 / p50, "tokens/s", None, where, "1 by token_p50_ms")
    if len(models) > 1:
        ratio = statistics.median(one / other for one, other in zip(*tokens, strict=True))
        note = "median of the ratios to the float export's tokens, in turns answer by answer"
        yield Finding.at_most("latency", "token_ratio", ratio, "ratio", None, where, note)


def _time_answer(run: OrtRunner, prompt: list[int], count: int) -> tuple[float, list[float]]:
    """Milliseconds to the first token of an answer, and those of each of the tokens behind it."""
    decoder = CachedDecoder(run, empty_cache(run.signature()["inputs"]))
    started = time.perf_counter_ns()
    token = int(np.argmax(decoder.feed(prompt)))
    times = []
    ended = time.perf_counter_ns()
    first_ms = (ended - started) / 1e6
    for _ in range(count):
        started = ended
        token = int(np.argmax(decoder.feed([token])))
        ended = time.perf_counter_ns()
        times.append((ended - started) / 1e6)
    return first_ms, times
