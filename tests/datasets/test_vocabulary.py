"""Trimmed vocabularies: what stays, that every text can still be encoded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeslim.datasets.vocabulary import choose_tokens, count_tokens, encode_plain, read_vocabulary, write_trimmed
from edgeslim.errors import BadInputError


def save(tokenizer: tokenizers.Tokenizer, folder: Path, **tokens: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(str(folder))
    return folder


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["the cat sat on the mat", "the other cat", "another mat, another day", "über den Wolken"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return save(tokenizer, tmp_path / "bpe", eos_token="<eos>")


def test_wordpiece_worked_by_hand(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "a", "##a", "##t", "c", "##s", "dog", "t", "s", "##at"]
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    folder = save(tokenizer, tmp_path / "old", **tokens)
    vocabulary = read_vocabulary(folder)
    counts = count_tokens(vocabulary, ["cat cat cats"])
    assert counts == {4: 3, 9: 1}
    # Ten signs and special tokens, the one word that is used, and "dog", which comes first of the others.
    kept = choose_tokens(vocabulary, counts, 12)
    assert [pieces[number] for number in kept] == [piece for piece in pieces if piece not in ("dog", "##at")]
    kept = choose_tokens(vocabulary, {13: 1}, 12)
    assert [pieces[number] for number in kept] == [piece for piece in pieces if piece not in ("cat", "dog")]
    out = tmp_path / "new"
    write_trimmed(vocabulary, kept, folder, out)
    loaded = AutoTokenizer.from_pretrained(str(out))
    assert loaded.tokenize("cat cats") == ["c", "##at", "c", "##at", "##s"]
    encoded = loaded("cats")["input_ids"]
    assert loaded.convert_ids_to_tokens(encoded) == ["[CLS]", "c", "##at", "##s", "[SEP]"]
    assert (out / "vocab.txt").read_text(encoding="utf-8").split() == loaded.convert_ids_to_tokens(range(12))
    with pytest.raises(BadInputError, match="at least the 11"):
        choose_tokens(vocabulary, counts, 10)


def test_texts_without_lost_words_keep_their_tokens(
    tiny_tokenizer: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    vocabulary = read_vocabulary(tiny_tokenizer)
    used, other = words[:40], words[40:80]
    counts = count_tokens(vocabulary, [" ".join(used)] * 2)
    kept = choose_tokens(vocabulary, counts, len(vocabulary.required) + 40)
    state = write_trimmed(vocabulary, kept, tiny_tokenizer, tmp_path / "new")
    for texts, same in ((used, True), (other, False)):
        before = encode_plain(vocabulary.state, texts)
        after = [[int(kept[number]) for number in ids] for ids in encode_plain(state, texts)]
        assert (before == after) is same
        unknown = state["model"]["vocab"]["[UNK]"]
        assert not any(unknown in ids for ids in encode_plain(state, texts))


def test_a_byte_level_bpe_keeps_what_it_merges_from(byte_level: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(byte_level)
    counts = count_tokens(vocabulary, ["another cat, another day"])
    kept = choose_tokens(vocabulary, counts, 275)
    assert len(kept) <= 275
    state = write_trimmed(vocabulary, kept, byte_level, tmp_path / "new")
    names = {number: token for token, number in vocabulary.tokens.items()}
    stays = {names[int(number)] for number in kept}
    for left, right in state["model"]["merges"]:
        assert {left, right, left + right} <= stays
    # Every kept token can be reached: it is a byte, special, or the merge of two kept ones.
    merged = {left + right for left, right in state["model"]["merges"]}
    assert all(len(token) == 1 or token in merged or token == "<eos>" for token in stays)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "new"))
    for text in ("the other cat sat on über Wolken", "żółć 漢字 🙂"):
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == int(np.flatnonzero(kept == vocabulary.tokens["<eos>"])[0])


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(BadInputError, match="a Unigram tokenizer"):
        read_vocabulary(save(unigram, tmp_path / "unigram", unk_token="<unk>"))
    characters = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(BadInputError, match="a BPE tokenizer"):
        read_vocabulary(save(characters, tmp_path / "bpe"))


def test_ids_of_a_post_processor_and_a_padding_change(tiny_tokenizer: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(tiny_tokenizer)
    state = json.loads(json.dumps(vocabulary.state))
    state["padding"] = {"strategy": "BatchLongest", "pad_id": vocabulary.tokens["[PAD]"]}
    state["post_processor"] = {
        "type": "Sequence",
        "processors": [{"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}],
    }
    changed = type(vocabulary)(
        state=state, tokens=vocabulary.tokens, required=vocabulary.required, merges=vocabulary.merges
    )
    kept = np.array(sorted({vocabulary.tokens[token] for token in vocabulary.required} - {4}))
    made = write_trimmed(
        type(vocabulary)(
            state={**state, "added_tokens": [item for item in state["added_tokens"] if item["id"] != 4]},
            tokens=changed.tokens,
            required=changed.required,
            merges={},
        ),
        kept,
        tmp_path / "nothing",
        tmp_path / "new",
    )
    assert made["padding"]["pad_id"] == 0
    assert made["post_processor"]["processors"][0]["sep"] == ["[SEP]", 3]
