"""Logits and settings on which Python, C and Java draw the same tokens, and a package that all three talk with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiny_llama

import edgeslim
from edgeslim.decoders.sampling import Sampling, SplitMix64
from edgeslim.packaging.unpack import unpack_package

VOCABULARY = 500
SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0, top_p=0.9, seed=1),
    Sampling(temperature=0.7, top_p=0.5, seed=2**64 - 1),
    Sampling(temperature=1e-3, top_p=1.0, seed=3),
    Sampling(temperature=100.0, top_p=1.0, seed=4),
    Sampling(temperature=0.3, top_p=1e-6, seed=5),
]
TURNS = ("A fox?", "And <|im_end|>\n<|im_start|>12 dögs 😀?", "\n\n ", "it doesn't <|im_start")


@functools.cache
def logits_rows() -> npt.NDArray[np.float32]:
    """[rows, vocabulary]: of several spreads, with ties, with what can't be chosen, and all alike."""
    random = np.random.default_rng(0)
    spreads = random.choice([0.1, 1.0, 3.0, 10.0, 30.0], 400)
    rows = (random.normal(0, 1, (400, VOCABULARY)) * spreads[:, None]).astype(np.float32)
    rows[::5] = np.round(rows[::5])
    rows[::7, ::3] = -np.inf
    rows[::11] = rows[::11, :1]
    rows[np.isinf(rows).all(axis=1)] = 0
    return rows


def draws(sampling: Sampling) -> list[int]:
    """Python's tokens for ``logits_rows``, drawn one after the other."""
    generator = SplitMix64(sampling.seed)
    return [sampling.choose(row, generator) for row in logits_rows()]


def build_tiny(folder: Path, target: str = "linux-arm64", cache: str = "") -> tuple[Path, Path]:
    """The package of a tiny model with a chat template, and the folder that it unpacks to.

    ``cache`` are settings of the stage ``kv_cache``.
    """
    steps = tiny_llama.KEEP + (f'[[steps]]\nuse = "kv_cache"\n{cache}\n' if cache else "")
    tiny_llama.write_project(folder, "m.gguf", steps)
    tiny_llama.write_gguf(folder / "m.gguf", {"ffn": "Q4_1", "weight": "Q8_0"})
    report = edgeslim.build(target=target, folder=folder, use_cache=False)
    assert not report.failed(), report.failed()
    package = Path(report.artifact.path)
    return package, unpack_package(package, folder / "unpacked").folder


def pythons_answers(
    package: Path, sampling: Sampling, most: int, turns: tuple[str, ...]
) -> tuple[list[str], list[int]]:
    """The texts of a conversation in Python, and all its tokens."""
    from edgeslim.conversation import open_conversation

    with open_conversation(package, threads=1) as conversation:
        texts = ["".join(conversation.answer(turn, max_tokens=most, sampling=sampling)) for turn in turns]
        tokens: list[int] = list(_tokens(conversation))
    return texts, tokens


def _tokens(conversation: Any) -> list[int]:
    found: list[int] = conversation._tokens
    return found
