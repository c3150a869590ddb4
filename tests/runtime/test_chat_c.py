"""The generate loop in C beside Python's: the same draws and conversations, and on emulated ARM the same tokens."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chat_cases
import numpy as np
import pytest

from edgeslim.decoders.sampling import Sampling
from edgeslim.devices.device import open_device
from edgeslim.devices.runtimes import runtime_headers, runtime_library
from edgeslim.packaging.cmake_files import CMAKE_DIR, cmake_extras, loader_sources
from tests.devices.conftest import TRIPLETS, need, need_machine
from tests.runtime.loader_programs import SANITIZERS, STRICT, compile_program

MAIN = Path(__file__).parent / "chat_main.c"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SAMPLE = Path(__file__).parents[2] / "samples" / "chat-llm" / "c"
IDS = [1, 40, 61, 77, 90, 3, 200, 201, 40, 61, 77, 90]


@dataclass(frozen=True, kw_only=True)
class Package:
    archive: Path
    folder: Path


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc", "npm")
    return compile_program(MAIN, "gcc", "x86_64", tmp_path_factory.mktemp("chat"), *STRICT, *SANITIZERS, chat=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Package:
    archive, folder = chat_cases.build_tiny(tmp_path_factory.mktemp("tiny"))
    return Package(archive=archive, folder=folder)


@pytest.fixture
def copied(tiny: Package, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))


def run(chat: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [str(chat), *map(str, words)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert "Sanitizer" not in done.stderr, done.stderr
    return done


def settings(sampling: Sampling) -> list[str]:
    return [repr(sampling.temperature), repr(sampling.top_p), str(sampling.seed)]


@pytest.mark.parametrize("sampling", chat_cases.SETTINGS, ids=str)
def test_draws_are_pythons(chat: Path, sampling: Sampling, tmp_path: Path) -> None:
    rows = tmp_path / "rows.bin"
    rows.write_bytes(chat_cases.logits_rows().tobytes())
    told = run(chat, "sample", rows, chat_cases.VOCABULARY, *settings(sampling))
    assert [int(line) for line in told.stdout.split()] == chat_cases.draws(sampling)


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_logits_that_are_none(chat: Path, bad: float | None, tmp_path: Path) -> None:
    row = np.full(8, -np.inf, np.float32)
    if bad is not None:
        row[2], row[5] = 1, bad
    (tmp_path / "row.bin").write_bytes(row.tobytes())
    for temperature in (0, 1):
        assert run(chat, "sample", tmp_path / "row.bin", 8, temperature, 0.9, 0).stdout == "-1\n"
    row = np.zeros(8, np.float32)
    (tmp_path / "row.bin").write_bytes(row.tobytes())
    for temperature, top_p in ((-1, 0.9), (101, 0.9), (1, 0), (1, 1.1), ("nan", 0.9)):
        assert run(chat, "sample", tmp_path / "row.bin", 8, temperature, top_p, 0).stdout == "-1\n"


def test_bytes_become_characters(chat: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pieces = ["é😀雪aÿ".encode(), b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\xf0\x9f\x98", b"\xc0\xaf"]
    raw = b"".join(pieces[k][: random.integers(1, 6)] for k in random.integers(0, len(pieces), 3000))
    raw += random.integers(128, 256, 5000, np.uint8).tobytes() + b"\xf0\x9f"
    (tmp_path / "raw").write_bytes(raw)
    assert run(chat, "utf8", tmp_path / "raw").stdout == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("sampling", chat_cases.SETTINGS[:3], ids=str)
def test_conversations_are_pythons(chat: Path, tiny: Package, sampling: Sampling) -> None:
    texts, tokens = chat_cases.pythons_answers(tiny.archive, sampling, 40, chat_cases.TURNS)
    told = run(chat, "answer", tiny.folder, *settings(sampling), 40, *chat_cases.TURNS)
    assert told.returncode == 0, told.stderr
    blocks = re.split(r"^(\d+) of (\d+)\n", told.stdout, flags=re.MULTILINE)
    assert [bytes.fromhex(block).decode() for block in blocks[0:-1:3]] == texts
    assert int(blocks[-2]) == len(tokens)
    assert sum(len(block.split()) for block in blocks[0:-1:3]) > 10 * len(texts), "the text comes in pieces"
    for piece in told.stdout.split("\n"):
        if " of " not in piece:
            bytes.fromhex(piece).decode()  # whole characters


@pytest.mark.parametrize("form", ["bits = 8", "bits = 8\nlength = 60", "bits = 32\nlength = 60"])
def test_caches_of_other_forms(chat: Path, form: str, tmp_path: Path) -> None:
    """int8 and fixed lengths, in which a conversation ends where the buffers are full."""
    archive, folder = chat_cases.build_tiny(tmp_path / "tiny", cache=form)
    drawn = chat_cases.SETTINGS[1]
    texts, tokens = chat_cases.pythons_answers(archive, drawn, 80, chat_cases.TURNS[:1])
    told = run(chat, "answer", folder, *settings(drawn), 80, *chat_cases.TURNS[:1])
    assert told.returncode == 0, told.stderr
    *blocks, _, count, _ = re.split(r"^(\d+) of (\d+)\n", told.stdout, flags=re.MULTILINE)
    assert [bytes.fromhex(block).decode() for block in blocks] == texts
    assert int(count) == len(tokens)
    assert len(tokens) == 61 if "length" in form else len(tokens) > 61
    if "length" in form:
        full = run(chat, "answer", folder, *settings(drawn), 80, "A fox?", "A dog?")
        assert full.returncode == 15
        assert "start anew" in full.stderr


def test_an_answer_can_be_stopped_and_a_conversation_begun_anew(chat: Path, tiny: Package) -> None:
    words = ("answer", tiny.folder, 0, 1, 0, 5, "A fox?", "restart", "A fox?", "stop", "restart", "A fox?")
    lines = [line for line in run(chat, *words).stdout.split("\n") if re.fullmatch(r"\d+ of \d+", line)]
    assert lines[0] == lines[1] == lines[3]
    assert 2 <= int(lines[2].split()[0]) < 5


def test_the_model_ends_an_answer_and_the_context_a_conversation(chat: Path, tiny: Package, copied: Path) -> None:
    def answer(**changes: Any) -> subprocess.CompletedProcess[str]:
        table = json.loads((copied / "manifest.json").read_text())
        table["task"] |= changes
        (copied / "manifest.json").write_text(json.dumps(table))
        return run(chat, "answer", copied, 0, 1, 0, 30, "A fox?", "A dog?")

    def counts(told: subprocess.CompletedProcess[str]) -> list[list[int]]:
        return [[int(a), int(b)] for a, b in re.findall(r"^(\d+) of (\d+)$", told.stdout, re.MULTILINE)]

    made, total = counts(answer())[0]
    prompt = total - made
    first = chat_cases.pythons_answers(tiny.archive, Sampling(), 1, ("A fox?",))[1][-1]
    assert counts(answer(end_tokens=[7, first]))[0] == [0, prompt]
    assert "too many" in answer(end_tokens=list(range(65))).stderr
    told = answer(end_tokens=[], context_tokens=prompt + 4)
    assert counts(told) == [[5, prompt + 5], [0, prompt + 5]]
    assert told.returncode == 15
    assert "start anew" in told.stderr
    for changes, words in (
        ({"task": "feature-extraction"}, "isn't a language model"),
        ({"task": "causal-lm", "end_tokens": [-1]}, "end_tokens"),
        ({"end_tokens": [2], "chat": {"start": "a"}}, "chat"),
    ):
        assert words in answer(**changes).stderr
    (copied / "manifest.json").write_text("{}")
    assert run(chat, "answer", copied, 0, 1, 0, 30, "a").returncode == 11


def test_without_a_template_it_goes_on_with_the_text(chat: Path, copied: Path) -> None:
    table = json.loads((copied / "manifest.json").read_text())
    table["task"]["chat"] = None
    (copied / "manifest.json").write_text(json.dumps(table))
    told = run(chat, "answer", copied, 0, 1, 0, 4, "A fox")
    assert told.returncode == 0, told.stderr
    assert "has no tokens" in run(chat, "answer", copied, 0, 1, 0, 4, "").stderr


def test_tokens_are_the_same_on_emulated_arm(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_machine("aarch64")
    program = compile_program(MAIN, f"{TRIPLETS['aarch64']}-gcc", "aarch64", tmp_path, "-O1", "-DESZ_LEAN", chat=True)
    with open_device("qemu:cortex-a72", "aarch64") as device:
        library = tmp_path / "libonnxruntime.so.1"
        device.push({"chat": program, library.name: library, "libonnxruntime.so": library})
        talked = device.run(["chat", "answer", str(copied), "1", "0.9", "7", "8", "A fox?"], timeout_s=60)
        assert talked.status == 0, talked.stderr
        assert " of " in talked.stdout.splitlines()[-1]
    monkeypatch.syspath_prepend(BENCHMARKS)
    (row,) = importlib.import_module("llm_devices").compare(copied, IDS, ["cortex-a72"], tmp_path)
    assert row["tokens"] == len(IDS)
    assert row["agreement"] >= 0.98


def test_the_sample_is_built_and_talks(tiny: Package, tmp_path: Path) -> None:
    need("cmake", "ninja")
    words = ["cmake", "-G", "Ninja", "-S", str(SAMPLE), "-B", str(tmp_path), f"-DEdgeslim_DIR={CMAKE_DIR}"]
    words += [f"-DEDGESLIM_COMMAND={sys.executable};-m;edgeslim", f"-DONNXRUNTIME_INCLUDE_DIR={runtime_headers()}"]
    words += [f"-DONNXRUNTIME_LIBRARY={runtime_library('x86_64', 'glibc')}"]
    for command in (words, ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    place = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    library = tmp_path / "libonnxruntime.so.1"
    shutil.copy(runtime_library("x86_64", "glibc"), library)
    place["LD_LIBRARY_PATH"] = str(tmp_path)
    command = [str(tmp_path / "chat"), str(tiny.folder)]
    talked = subprocess.run(command, input=b"A fox?\n\n", capture_output=True, timeout=60, env=place, check=True)
    (answer,), tokens = chat_cases.pythons_answers(tiny.archive, Sampling(), 256, ("A fox?",))
    assert talked.stdout.decode() == f"{answer}\n"
    assert len(tokens) == 257, "up to the end of its context"
    assert b"tokens a second" in talked.stderr


def test_packages_of_language_models_carry_the_loop(tmp_path: Path) -> None:
    names = {path.name for path in loader_sources(chat=True)} - {path.name for path in loader_sources()}
    assert names == {
        "edgeslim_chat.c", "edgeslim_chat.h", "edgeslim_decoder.c", "edgeslim_decoder.h", "edgeslim_sample.c",
        "edgeslim_sample.h", "edgeslim_utf8.h",
    }  # fmt: skip
    with_it = dict(cmake_extras("a-model", "a-board", tmp_path / "a", chat=True))
    without = dict(cmake_extras("a-model", "a-board", tmp_path / "b"))
    assert set(with_it) - set(without) == {f"cmake/loader/{name}" for name in names}
