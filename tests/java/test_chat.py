"""The generate loop in Java over recorded logits, beside Python's on the model itself: the same draws and texts."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chat_cases
import numpy as np
import numpy.typing as npt
import pytest

from edgeslim.conversation import open_conversation
from edgeslim.decoders.sampling import Sampling

RunJava = Callable[..., str]


def settings(sampling: Sampling) -> list[str]:
    return [repr(sampling.temperature), repr(sampling.top_p), str(sampling.seed)]


@pytest.mark.parametrize("sampling", chat_cases.SETTINGS, ids=str)
def test_draws_are_pythons(run_java: RunJava, sampling: Sampling, tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_bytes(chat_cases.logits_rows().astype(">f4").tobytes())
    told = run_java("ChatMain", "sample", tmp_path, chat_cases.VOCABULARY, *settings(sampling))
    assert [int(line) for line in told.split()] == chat_cases.draws(sampling)


def test_logits_that_are_none(run_java: RunJava, tmp_path: Path) -> None:
    rows = np.full((3, 8), -np.inf, ">f4")
    rows[1:, 2] = 1
    rows[1, 5], rows[2, 5] = np.nan, np.inf
    (tmp_path / "rows.bin").write_bytes(rows.tobytes())
    for temperature in (0, 1):
        assert run_java("ChatMain", "sample", tmp_path, 8, temperature, 0.9, 0).split() == ["-1"] * 3


def test_bytes_become_characters(run_java: RunJava, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    raw = "é😀雪aÿ".encode() * 3 + random.integers(128, 256, 20_000, np.uint8).tobytes() + b"\xf0\x9f"
    (tmp_path / "raw").write_bytes(raw)
    run_java("ChatMain", "utf8", tmp_path)
    assert (tmp_path / "out").read_bytes().decode() == raw.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class Package:
    archive: Path
    folder: Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Package:
    archive, folder = chat_cases.build_tiny(tmp_path_factory.mktemp("tiny"), "android-arm64")
    return Package(archive=archive, folder=folder)


@pytest.fixture
def copied(tiny: Package, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))


def record(tiny: Package, folder: Path, sampling: Sampling, most: int) -> tuple[list[str], int]:
    """Python's answers and their number of tokens; its logits go to the recording, by all tokens up to there."""
    seen: list[int] = []
    recorded: list[tuple[list[int], npt.NDArray[np.float32]]] = []
    with open_conversation(tiny.archive, threads=1) as conversation:
        decoder: Any = conversation._decoder
        feed = decoder.feed

        def feed_and_record(tokens: list[int]) -> npt.NDArray[np.float32]:
            logits: npt.NDArray[np.float32] = feed(tokens)
            seen.extend(tokens)
            recorded.append((list(seen), logits))
            return logits

        decoder.feed = feed_and_record
        texts = ["".join(conversation.answer(turn, max_tokens=most, sampling=sampling)) for turn in chat_cases.TURNS]
        count = len(conversation._tokens)
    content = struct.pack(">I", len(recorded))
    for ids, logits in recorded:
        content += struct.pack(f">I{len(ids)}II", len(ids), *ids, len(logits)) + logits.astype(">f4").tobytes()
    (folder / "recording.bin").write_bytes(content)
    for index, turn in enumerate(chat_cases.TURNS):
        (folder / f"turn{index}").write_text(turn, encoding="utf-8", newline="")
    return texts, count


def answers(folder: Path) -> list[str]:
    content, found = (folder / "out.bin").read_bytes(), []
    while content:
        (size,) = struct.unpack_from(">I", content)
        found.append(content[4 : 4 + size].decode())
        content = content[4 + size :]
    return found


@pytest.mark.parametrize("sampling", chat_cases.SETTINGS[:2], ids=str)
def test_conversations_are_pythons(run_java: RunJava, tiny: Package, copied: Path, sampling: Sampling) -> None:
    texts, count = record(tiny, copied, sampling, 24)
    turns = [f"turn{index}" for index in range(len(texts))]
    lines = run_java("ChatMain", "chat", copied, *settings(sampling), 24, *turns).split()
    assert answers(copied) == texts
    assert lines[-2:] == [str(count), "true"]


def test_stopped_begun_anew_and_full(run_java: RunJava, tiny: Package, copied: Path) -> None:
    record(tiny, copied, Sampling(), 8)
    words = ("chat", copied, 0, 1, 0, 8)
    lines = run_java("ChatMain", *words, "turn0", "restart", "stop", "restart", "turn0").split()
    prompt = int(lines[0]) - 8
    assert lines[0] == lines[2]
    assert prompt < int(lines[1]) < int(lines[0])
    table = json.loads((copied / "manifest.json").read_text())
    table["task"] |= {"context_tokens": prompt + 4, "end_tokens": []}
    (copied / "manifest.json").write_text(json.dumps(table))
    lines = run_java("ChatMain", *words, "turn0", "turn1").splitlines()
    assert lines[0] == lines[2] == str(prompt + 5)
    assert "context has" in lines[1]
    table["task"]["end_tokens"] = list(range(320))
    (copied / "manifest.json").write_text(json.dumps(table))
    assert run_java("ChatMain", *words, "turn0").split()[0] == str(prompt)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ["256 false", "past_key_values.0.key [1, 2, 0, 16]"]),
        ({"type": "tensor(int8)"}, ["256 true", "past_key_values.0.key [1, 2, 0, 16]"]),
        ({"type": "tensor(int8)", "shape": [None, 2, 40, 16]}, ["40 true", "past_key_values.0.key [1, 2, 40, 16]"]),
        ({"shape": [None, 2, 4000, 16]}, ["256 false", "past_key_values.0.key [1, 2, 4000, 16]"]),
        ({"type": "tensor(float16)"}, ["a KV cache of [tensor(float16)]"]),
        ({"shape": [None, 1024, 1 << 20, 1024]}, ["expected less"]),
        ({"shape": [None, 2, -1, 16]}, ["signature.inputs.shape[2]"]),
        ({"shape": [None, 2, 16]}, ["of 3 dimensions"]),
    ],
    ids=str,
)
def test_caches_of_other_forms(run_java: RunJava, copied: Path, changes: dict[str, Any], told: list[str]) -> None:
    """Type and length are the signature's; the context is at most what the buffers hold."""
    table = json.loads((copied / "manifest.json").read_text())
    for item in table["signature"]["inputs"]:
        if item["name"].startswith("past_key_values."):
            item |= changes
    (copied / "manifest.json").write_text(json.dumps(table))
    lines = run_java("ChatMain", "spec", copied).splitlines()
    assert len(lines) == (5 if len(told) == 2 else 1)
    for line, words in zip(lines, told, strict=False):
        assert words in line
