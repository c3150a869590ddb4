"""KV caches in int8 and of a fixed length beside the float one that grows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama

from edgeslim.checks.operators import check_operators
from edgeslim.core import Batch, Context, Quiet
from edgeslim.decoders.cache_form import largest_magnitudes
from edgeslim.decoders.checkpoint import SafetensorsCheckpoint
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate
from edgeslim.decoders.language_source import empty_inputs
from edgeslim.decoders.shape import shape_from_config
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.language_task import CausalLM
from edgeslim.session import OrtRunner, open_runner
from edgeslim.stages.kv_cache import KvCache
from edgeslim.target import load_target

PROMPT = [5, 77, 130, 9, 41, 200, 3]


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.write_huggingface(tmp_path_factory.mktemp("tiny") / "model")
    shape = shape_from_config(tiny_llama.config().to_dict(), "config.json")
    return write_decoder(SafetensorsCheckpoint(folder, shape), folder.parent / "graph")


def windows() -> list[Batch]:
    shape = shape_from_config(tiny_llama.config().to_dict(), "config.json")
    tokens = np.random.default_rng(0).integers(3, 300, (100, 1, 24))
    return [Batch(feed={"input_ids": row, **empty_inputs(shape)}, rows=1) for row in tokens]


def convert(path: Path, folder: Path, **settings: Any) -> tuple[OrtRunner, dict[str, float]]:
    context = Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=windows(), reference=lambda feed: feed, seed=0,
        work_dir=folder / "work",
    )  # fmt: skip
    result = KvCache(**settings).run(load_graph(path), context)
    out, _ = save_graph(result.model, folder / "converted")
    assert all(finding.verdict != "fail" for finding in check_operators(out, load_target("linux-arm64")))
    return open_runner(out), dict(result.metrics)


def greedy(runner: OrtRunner, prompt: list[int], count: int) -> list[int]:
    decoder = CachedDecoder(runner, empty_cache(runner.signature()["inputs"]))
    return list(generate(decoder, prompt, end_tokens=(), max_tokens=count))


def test_a_fixed_length_changes_nothing(floats: Path, tmp_path: Path) -> None:
    runner, metrics = convert(floats, tmp_path, bits=32, length=96)
    assert greedy(runner, PROMPT, 64) == greedy(open_runner(floats), PROMPT, 64) == tiny_llama.greedy(PROMPT, 64)
    assert metrics == {"bytes_a_token": 2 * 2 * 2 * 16 * 4.0, "cache_bytes": 2 * 2 * 2 * 16 * 4 * 96.0}
    cache = empty_cache(runner.signature()["inputs"])
    assert {value.shape for value in cache.values()} == {(1, 2, 96, 16)}
    # A prompt in pieces, and windows whose feeds know nothing of the buffers.
    long = (PROMPT * 12)[:80]
    assert greedy(runner, long, 8) == greedy(open_runner(floats), long, 8)
    feed = windows()[0].feed
    np.testing.assert_array_equal(runner(feed)["logits"], open_runner(floats)(feed)["logits"])


def test_it_ends_where_the_buffers_are_full(floats: Path, tmp_path: Path) -> None:
    runner, _ = convert(floats, tmp_path, bits=32, length=32)
    assert len(greedy(runner, PROMPT, 64)) == 32 - len(PROMPT) + 1
    decoder = CachedDecoder(runner, empty_cache(runner.signature()["inputs"]), context=1000)
    with pytest.raises(BadInputError, match="32, the model's context"):
        decoder.feed(PROMPT * 5)


@pytest.mark.parametrize("length", [0, 96])
def test_int8_is_near(floats: Path, tmp_path: Path, length: int) -> None:
    """Token by token, so that all but the newest keys and values come from the cache."""
    runner, metrics = convert(floats, tmp_path, length=length, calibration_windows=100)
    assert metrics["bytes_a_token"] == 2 * 2 * 2 * 16
    plain = open_runner(floats)
    decoders = [CachedDecoder(one, empty_cache(one.signature()["inputs"])) for one in (runner, plain)]
    worst = 1.0
    for token in np.random.default_rng(1).integers(3, 300, 40):
        ours, theirs = (decoder.feed([int(token)]) for decoder in decoders)
        worst = min(worst, float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))))
    assert 0.998 < worst < 1 - 1e-9
    assert {value.dtype for value in decoders[0]._cache.values()} == {np.dtype(np.int8)}
    assert {value.dtype for value in decoders[1]._cache.values()} == {np.dtype(np.float32)}


def test_scales_hold_what_calibration_saw(floats: Path) -> None:
    runner, batches = open_runner(floats), windows()
    found = largest_magnitudes(runner, batches, Quiet())
    outputs = [runner(batch.feed) for batch in batches]
    for name, most in found.items():
        whole = np.concatenate([output[name] for output in outputs], axis=2)
        wanted = np.abs(whole[0])
        if name.endswith(".key"):  # positions turn pairs of channels: what holds at any is the pair's length
            pair = np.sqrt(np.square(whole[0, ..., :8]) + np.square(whole[0, ..., 8:]))
            wanted = np.concatenate([pair, pair], axis=-1)
        np.testing.assert_allclose(most, wanted.max(axis=1), rtol=1e-6)
    with pytest.raises(BadInputError, match="no samples"):
        largest_magnitudes(runner, [], Quiet())


def test_what_has_no_such_cache_is_refused(floats: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="at least 24"):
        convert(floats, tmp_path / "a", bits=32, length=16)
    runner, _ = convert(floats, tmp_path / "b")
    del runner
    with pytest.raises(BadInputError, match="another form"):
        convert(tmp_path / "b" / "converted" / "model.onnx", tmp_path / "c")
    for settings in ({"bits": 32}, {"length": -1}, {"length": 1}, {"calibration_windows": 0}):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(KvCache(), **settings)


def test_its_values_can_be_asked_for_one_by_one(floats: Path, tmp_path: Path) -> None:
    """Stages behind it look into the graph with the feeds of the samples, which know of no buffers."""
    runner, _ = convert(floats, tmp_path, length=32)
    feed = windows()[0].feed
    np.testing.assert_array_equal(runner.run_only(feed, ["logits"])["logits"], runner(feed)["logits"])
