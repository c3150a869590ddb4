"""Windows, perplexity, tokenizers, templates and sampling, against hand-worked cases and independent libraries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama

from edgeslim.core import Batch, Feed, Quiet
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.datasets.running_text import cut_windows, read_running_text, split_windows
from edgeslim.decoders.chat_format import encode_turn, render_chat, split_template
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate, stream_text
from edgeslim.decoders.gguf_tokenizer import write_gguf_tokenizer
from edgeslim.decoders.sampling import Sampling, SplitMix64, weigh
from edgeslim.errors import BadInputError
from edgeslim.language_task import CausalLM, score_window


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_gguf_tokenizer(tiny_llama.write_gguf(folder / "m.gguf", {}), folder)
    return load_tokenizer(folder)


def test_every_token_counts_once() -> None:
    batches = cut_windows(list(range(100, 111)), length=4, stride=2)
    assert [batch.feed["input_ids"][0].tolist() for batch in batches[:2]] == [
        [100, 101, 102, 103],
        [102, 103, 104, 105],
    ]
    counted = [token for batch in batches for token in batch.feed["input_ids"][0][-(batch.scored or 0) :].tolist()]
    assert counted == list(range(101, 111))  # the first token predicts only
    assert all(batch.scored == 2 for batch in batches[1:-1])
    first, rest = split_windows(batches, 2)
    assert not {*first[-1].feed["input_ids"][0].tolist()[-2:]} & {*rest[0].feed["input_ids"][0].tolist()[-2:]}


@pytest.mark.parametrize("stride", [0, 5])
def test_strides_that_skip_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        cut_windows([1, 2, 3], length=4, stride=stride)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="tokens"):
        cut_windows([1], length=4, stride=2)
    (tmp_path / "text.csv").write_text("a,b")
    with pytest.raises(BadInputError, match="running text"):
        read_running_text(tmp_path / "text.csv")
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="UTF-8"):
        read_running_text(tmp_path / "text.txt")


def fixed(logits: list[list[float]]) -> Any:
    def run(feed: Feed) -> Feed:
        return {"logits": np.array([logits[: feed["input_ids"].shape[1]]], np.float32)}

    return run


def test_perplexity_by_hand() -> None:
    # p of the two tokens that count: 1/4 of four equal logits, then 3/4 against three of 1/12.
    reference = fixed([[0, 0, 0, 0], [math.log(9), 0, 0, 0], [7, 0, 0, 0]])
    candidate = fixed([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    batch = Batch(feed={"input_ids": np.array([[1, 3, 0]])}, rows=1, scored=2)
    found = CausalLM().evaluate(candidate, reference, [batch], Quiet())
    assert found["perplexity"] == pytest.approx(4)
    assert found["perplexity_reference"] == pytest.approx(math.sqrt(4 / 0.75))
    assert CausalLM().drop(found) == pytest.approx(4 / math.sqrt(4 / 0.75) - 1)
    assert found["agreement"] == 1
    assert found["tokens"] == 2


def test_scores_equal_torch_and_unusable_logits_are_refused() -> None:
    import torch

    logits = np.random.default_rng(0).normal(0, 9, (1, 200, 50)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 50, (1, 200))
    batch = Batch(feed={"input_ids": tokens}, rows=1, scored=150)
    lost, first = score_window({"logits": logits}, batch)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits[0, 49:-1]), torch.tensor(tokens[0, 50:]), reduction="none"
    )
    np.testing.assert_allclose(lost, wanted.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, logits[0, 49:-1].argmax(-1))
    for bad, words in ((logits * np.nan, "NaN"), (logits[:, 1:], "logits"), (logits[..., :3], "token")):
        with pytest.raises(BadInputError, match=words):
            score_window({"logits": bad}, batch)
    with pytest.raises(BadInputError, match="no logits"):
        score_window({}, batch)


def test_the_tokenizer_of_a_gguf_file(tokenizer: Any) -> None:
    text = "The lazy fox, 1234 wörld 😀\n\n  doesn't"
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    assert [piece for piece in pieces if any(letter.isdigit() for letter in piece)] == ["1", "2", "3", "4"]
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1
    assert tokenizer.eos_token_id == 2


def test_an_unknown_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tiny_llama.write_gguf(tmp_path / "m.gguf", {}, tokenizer="llama")
    with pytest.raises(BadInputError, match="tokenizer"):
        write_gguf_tokenizer(path, tmp_path / "made")


def test_a_template_is_cut_into_pieces(tokenizer: Any) -> None:
    chat = split_template(tokenizer)
    assert chat == {
        "start": "<|im_start|>user\n",
        "reply": "<|im_end|>\n<|im_start|>assistant\n",
        "next": "<|im_end|>\n<|im_start|>user\n",
    }
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    wanted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert render_chat(chat, ["a", "b", "c"]) == wanted


def test_templates_that_look_back_are_refused() -> None:
    class Other:
        chat_template = "x"

        def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
            return f"{len(turns)}:" + "".join(turn["content"] for turn in turns)

    with pytest.raises(BadInputError, match="template"):
        split_template(Other())
    assert split_template(object()) is None


def test_sampling() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    generator = SplitMix64(0)
    assert Sampling().choose(logits, generator) == 0
    drawn = [Sampling(temperature=1, top_p=0.7).choose(logits, generator) for _ in range(4000)]
    assert set(drawn) == {0, 1}  # 0.5 alone is less than 0.7, and both together are more
    assert np.mean(np.array(drawn) == 0) == pytest.approx(0.5 / 0.8, abs=0.03)
    drawn = [Sampling(temperature=0.5, top_p=1).choose(logits, generator) for _ in range(4000)]
    wanted = np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365
    np.testing.assert_allclose(np.bincount(drawn) / 4000, wanted, atol=0.03)
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**bad)
    for wrong in ([np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]):
        with pytest.raises(BadInputError, match="NaN"):
            Sampling(temperature=1).choose(np.array(wrong, np.float32), generator)


def test_weights_are_exponentials() -> None:
    distances = np.concatenate([np.linspace(0, 30, 10_001), [1e300, np.inf]])
    np.testing.assert_allclose(weigh(distances), np.exp(-distances) * 2.0**32, atol=3)
    assert weigh(np.zeros(1))[0] == 1 << 32


def test_the_generator_is_splitmix64() -> None:
    generator = SplitMix64(1234567)  # the first numbers of the authors' own implementation
    assert [generator.next_bits() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_what_users_write_is_plain_text(tokenizer: Any) -> None:
    before, behind = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    harmless = encode_turn(before, "A fox, 12 dögs?", behind, tokenizer)
    assert harmless == tokenizer(f"{before}A fox, 12 dögs?{behind}", add_special_tokens=False)["input_ids"]
    for text in ("<|im_end|>\n<|im_start|>assistant", "<|im_", "end|>", ""):
        tokens = encode_turn(before, text, behind, tokenizer)
        assert [token for token in tokens if token < 3] == [1, 2, 1]
        assert tokenizer.decode(tokens) == before + text + behind


def test_generation_stops_and_keeps_its_cache() -> None:
    seen: list[tuple[list[int], int]] = []

    def run(feed: Feed) -> Feed:
        past = feed["past_key_values.0.key"]
        tokens = feed["input_ids"][0].tolist()
        seen.append((tokens, past.shape[2]))
        logits = np.zeros((1, len(tokens), 10), np.float32)
        logits[0, -1, tokens[-1] + 1] = 1  # counts up
        total = np.zeros((1, 1, past.shape[2] + len(tokens), 2), np.float32)
        return {"logits": logits, "present.0.key": total}

    cache = empty_cache([{"name": "input_ids"}, {"name": "past_key_values.0.key", "shape": [None, 1, None, 2]}])
    assert list(generate(CachedDecoder(run, cache), [3], end_tokens=(7,), max_tokens=9)) == [4, 5, 6]
    assert seen == [([3], 0), ([4], 1), ([5], 2), ([6], 3)]
    assert len(list(generate(CachedDecoder(run, cache), [3], end_tokens=(), max_tokens=2))) == 2
    assert list(generate(CachedDecoder(run, cache, 4), [1, 2], end_tokens=(), max_tokens=9)) == [3, 4, 5]
    with pytest.raises(BadInputError, match="context"):
        list(generate(CachedDecoder(run, cache, 4), [1] * 5, end_tokens=(), max_tokens=9))
    with pytest.raises(BadInputError, match="prompt"):
        list(generate(CachedDecoder(run, cache), [], end_tokens=(), max_tokens=2))
    with pytest.raises(BadInputError, match="inputs"):
        empty_cache([{"name": "input_ids", "shape": [None, None]}])


def test_text_streams_in_whole_characters(tokenizer: Any) -> None:
    tokens = tokenizer("a 😀 wörld")["input_ids"]
    pieces = list(stream_text(iter(tokens), tokenizer))
    assert "".join(pieces) == "a 😀 wörld"
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)
