"""A smaller vocabulary for a tokenizer: the tokens that a corpus uses most, and all that nothing can be said without.

Kept in any case are special and added tokens and every single character, at a word's beginning and inside it (a byte's
sign for byte-level BPE), so that each text that could be encoded still can be: a word whose token went falls into
pieces. A byte-level BPE also keeps what its kept tokens are merged from, and the merges among the kept.

WordPiece (BERT) and byte-level BPE (GPT-2, Llama 3) can be trimmed. Others are refused: a unigram model's pieces have
scores that hang together, and a BPE of characters knows no sign for what it has never seen.

Ids change: the kept tokens are numbered anew in their old order, everywhere in the tokenizer's files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.errors import BadInputError

__all__ = ["Vocabulary", "choose_tokens", "count_tokens", "encode_plain", "read_vocabulary", "write_trimmed"]

COPIED = ("special_tokens_map.json", "chat_template.jinja", "generation_config.json")
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A fast tokenizer's ``state`` (the content of ``tokenizer.json``), its ``tokens`` by id, and what must stay."""

    state: Mapping[str, Any]
    tokens: Mapping[str, int]
    required: frozenset[str]
    merges: Mapping[str, tuple[str, str]]

    @property
    def rows(self) -> int:
        """The highest id, plus 1."""
        return max(self.tokens.values()) + 1


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of the tokenizer in ``folder``.

    Raises:
        BadInputError: it can't be read, or is of a kind that can't be trimmed.
    """
    loaded = load_tokenizer(folder)
    if not getattr(loaded, "is_fast", False):
        raise _refuse(folder, "a tokenizer without tokenizer.json")
    state: dict[str, Any] = json.loads(loaded.backend_tokenizer.to_str())
    model = state["model"]
    added = {item["content"]: int(item["id"]) for item in state.get("added_tokens", [])}
    tokens = {**(model["vocab"] if isinstance(model.get("vocab"), dict) else {}), **added}
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        single = {token for token in tokens if len(token.removeprefix(prefix)) == 1}
        required = single | set(added) | {model["unk_token"]}
        return Vocabulary(state=state, tokens=tokens, required=frozenset(required), merges={})
    if model["type"] != "BPE" or model.get("byte_fallback") or not _is_byte_level(state):
        raise _refuse(folder, f"a {model['type']} tokenizer")
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made: dict[str, tuple[str, str]] = {}
    for left, right in pairs:
        made.setdefault(left + right, (left, right))
    loose = {token for token in tokens if len(token) == 1 or (token not in made and token not in added)}
    return Vocabulary(state=state, tokens=tokens, required=frozenset(loose | set(added)), merges=made)


def count_tokens(vocabulary: Vocabulary, texts: Iterable[str]) -> Counter[int]:
    """How often each id occurs in ``texts``, special tokens left out."""
    counts: Counter[int] = Counter()
    for ids in encode_plain(vocabulary.state, texts):
        counts.update(ids)
    return counts


def choose_tokens(vocabulary: Vocabulary, counts: Mapping[int, int], keep: int) -> npt.NDArray[np.int64]:
    """The old ids of the ``keep`` tokens that stay, sorted: those required, then the most frequent, then the first.

    Raises:
        BadInputError: more tokens than that can't go.
    """
    names = {number: token for token, number in vocabulary.tokens.items()}
    kept = {vocabulary.tokens[token] for token in vocabulary.required}
    if len(kept) > keep:
        raise BadInputError(
            "trim_vocabulary: keep",
            f"{keep:,} tokens",
            expected=f"at least the {len(kept):,} special tokens and single characters, without which texts are lost",
        )
    for number in sorted(names, key=lambda item: (-counts.get(item, 0), item)):
        if number in kept or not counts.get(number, 0):
            continue
        wanted = {vocabulary.tokens[part] for part in _parts(vocabulary, names[number])} - kept
        if len(kept) + len(wanted) <= keep:
            kept |= wanted
    for number in sorted(names):  # a corpus that knows fewer: the first ids are a vocabulary's most frequent
        if len(kept) >= keep:
            break
        wanted = {vocabulary.tokens[part] for part in _parts(vocabulary, names[number])} - kept
        if len(kept) + len(wanted) <= keep:
            kept |= wanted
    return np.array(sorted(kept), np.int64)


def write_trimmed(vocabulary: Vocabulary, kept: npt.NDArray[np.int64], folder: Path, out: Path) -> dict[str, Any]:
    """Writes the tokenizer of ``folder`` with the tokens ``kept`` alone into the new ``out``; its new state."""
    renamed = {int(old): new for new, old in enumerate(kept)}
    state: dict[str, Any] = json.loads(json.dumps(vocabulary.state))
    model = state["model"]
    known = model["vocab"]
    model["vocab"] = {token: renamed[number] for token, number in known.items() if number in renamed}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if _survives(pair, model["vocab"])]
    for item in state.get("added_tokens", []):
        item["id"] = renamed[int(item["id"])]
    if state.get("padding"):
        state["padding"]["pad_id"] = renamed[int(state["padding"]["pad_id"])]
    _renumber(state.get("post_processor"), renamed)
    out.mkdir(parents=True)
    _write_json(out / "tokenizer.json", state)
    for name in COPIED:
        if (folder / name).is_file():
            (out / name).write_bytes(_read(folder / name))
    settings = (
        json.loads(_read(folder / "tokenizer_config.json")) if (folder / "tokenizer_config.json").is_file() else {}
    )
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        settings["added_tokens_decoder"] = {str(renamed[int(number)]): item for number, item in decoder.items()}
    if "tokenizer_class" not in settings:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(out / "tokenizer_config.json", settings)
    if model["type"] == "WordPiece":
        ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (out / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered), encoding="utf-8")
    return state


def encode_plain(state: Mapping[str, Any], texts: Iterable[str]) -> list[list[int]]:
    """The ids of texts, whole and without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _parts(vocabulary: Vocabulary, token: str) -> set[str]:
    """A token and all that it is merged from."""
    found, waiting = set[str](), [token]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [part for part in vocabulary.merges.get(one, ()) if part in vocabulary.tokens]
    return found


def _survives(pair: str | Sequence[str], vocab: Mapping[str, int]) -> bool:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in vocab and right in vocab and left + right in vocab


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    def walk(part: Any) -> bool:
        if not isinstance(part, dict):
            return False
        if part.get("type") == "ByteLevel":
            return True
        return any(walk(item) for key in ("pretokenizers", "decoders") for item in part.get(key, ()))

    return walk(state.get("pre_tokenizer")) or walk(state.get("decoder"))


def _renumber(part: Any, renamed: Mapping[int, int]) -> None:
    """New ids in a post-processor, of whatever kind."""
    if not isinstance(part, dict):
        return
    for item in part.get("processors", ()):
        _renumber(item, renamed)
    if part.get("type") == "TemplateProcessing":
        for item in part["special_tokens"].values():
            item["ids"] = [renamed[int(number)] for number in item["ids"]]
    for key in ("sep", "cls"):  # BertProcessing, RobertaProcessing: [token, id]
        if isinstance(part.get(key), list):
            part[key] = [part[key][0], renamed[int(part[key][1])]]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInputError(str(path), f"{path.stat().st_size:,} bytes", expected=f"at most {MAX_FILE_BYTES:,}")
    return path.read_bytes()


def _refuse(folder: Path, got: str) -> BadInputError:
    return BadInputError(
        str(folder),
        got,
        expected="WordPiece or byte-level BPE, in a tokenizer.json",
        hint="leave trim_vocabulary out of the recipe",
    )
