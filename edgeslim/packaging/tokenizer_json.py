"""What a device must know of a Hugging Face tokenizer, out of its ``tokenizer.json``.

Two kinds are known: BERT's WordPiece, and GPT-2's BPE on bytes, with digits one by one on demand. Whatever else a file
asks for is refused, so that what is packed from it gives the same tokens. The letters that stand for bytes in a BPE
vocabulary are turned into those bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeslim.errors import BadInputError

__all__ = ["TokenizerTables", "read_tokenizer_json"]

MAX_JSON_CHARACTERS = 64 << 20
MAX_TOKENS = 1 << 20
MAX_TOKEN_BYTES = 255
MAX_FRAME = 16
WORDPIECE, BPE = 1, 2
CLEAN, SPACE_CHINESE, STRIP_ACCENTS, LOWER, PREFIX_SPACE, FUSE_UNKNOWN, SINGLE_DIGITS, WHOLE_WORDS, WIDE = (
    1 << bit for bit in range(9)
)
NONE = 0xFFFFFFFF


@dataclass(kw_only=True)
class TokenizerTables:
    """What becomes of a tokenizer.json."""

    kind: int
    flags: int = 0
    vocabulary_size: int = 0
    unknown: int = NONE
    most_characters: int = 0
    front: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    added: dict[bytes, int] = field(default_factory=dict)
    words: dict[bytes, int] = field(default_factory=dict)
    parts: dict[bytes, int] = field(default_factory=dict)
    merges: list[tuple[int, int, int]] = field(default_factory=list)


def read_tokenizer_json(text: str, where: str) -> TokenizerTables:
    """Reads ``text``, which ``where`` names in errors.

    Raises:
        BadInputError: it isn't well-formed, too large, or does something that devices' tokenizers don't.
    """
    reader = _Reader(where)
    root = reader.parse(text)
    model = reader.table(root, "model")
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind == "WordPiece":
        tables = reader.read_wordpiece(root, model)
    elif kind == "BPE":
        tables = reader.read_bpe(root, model)
    else:
        raise reader.refusal(f"a model of type {kind!r}", "WordPiece or byte-level BPE")
    reader.read_added(root, tables)
    reader.read_frame(root, tables)
    return tables


class _Reader:
    """Takes a tokenizer.json apart, and refuses what it doesn't know."""

    def __init__(self, where: str) -> None:
        self._where = where

    def refusal(self, got: str, expected: str) -> BadInputError:
        return BadInputError(self._where, got, expected=expected, hint="encode texts in the app's own code")

    def parse(self, text: str) -> Mapping[str, Any]:
        if len(text) > MAX_JSON_CHARACTERS:
            raise self.refusal(f"{len(text):,} characters", f"at most {MAX_JSON_CHARACTERS:,}")
        try:
            root = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.refusal(f"not valid JSON: {error}", "a JSON file") from error
        if not isinstance(root, dict):
            raise self.refusal(f"a {type(root).__name__}", "a JSON object")
        return root

    def table(self, root: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = root.get(key)
        if not isinstance(value, dict):
            raise self.refusal(f'"{key}" is a {type(value).__name__}', "an object")
        return value

    def demand(self, table: Mapping[str, Any], name: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Every key of ``allowed`` has one of its values, absence counting as None; no other key is there."""
        for key, value in table.items():
            if key not in allowed and key != "type":
                raise self.refusal(f'"{key}" in {name}', "no such key")
            if key in allowed and allowed[key] and not any(value is one or value == one for one in allowed[key]):
                raise self.refusal(f"{name}: {key} = {value!r}", " or ".join(repr(one) for one in allowed[key]))

    def vocabulary(self, model: Mapping[str, Any], tables: TokenizerTables) -> dict[str, int]:
        tokens = self.table(model, "vocab")
        for token, number in tokens.items():
            if type(number) is not int or not 0 <= number < MAX_TOKENS:
                raise self.refusal(f"token {token[:80]!r} has id {number!r}", f"an id below {MAX_TOKENS:,}")
            tables.vocabulary_size = max(tables.vocabulary_size, number + 1)
        if not tokens:
            raise self.refusal("no token", "a vocabulary")
        return dict(tokens)

    def read_wordpiece(self, root: Mapping[str, Any], model: Mapping[str, Any]) -> TokenizerTables:
        tables = TokenizerTables(kind=WORDPIECE)
        known: dict[str, tuple[Any, ...]] = {"vocab": (), "unk_token": (), "max_input_chars_per_word": ()}
        self.demand(model, "model", known | {"continuing_subword_prefix": ("##",)})
        self.demand(self.table(root, "pre_tokenizer"), "pre_tokenizer", {})
        if self.table(root, "pre_tokenizer").get("type") != "BertPreTokenizer":
            raise self.refusal("another pre_tokenizer", "BertPreTokenizer")
        normalizer = self.table(root, "normalizer")
        if normalizer.get("type") != "BertNormalizer":
            raise self.refusal(f"a normalizer of type {normalizer.get('type')!r}", "BertNormalizer")
        yes_or_no = (True, False)
        self.demand(
            normalizer,
            "normalizer",
            {
                "clean_text": yes_or_no,
                "handle_chinese_chars": yes_or_no,
                "strip_accents": (*yes_or_no, None),
                "lowercase": yes_or_no,
            },
        )
        lower = bool(normalizer.get("lowercase"))
        strip = lower if normalizer.get("strip_accents") is None else bool(normalizer["strip_accents"])
        tables.flags |= CLEAN * bool(normalizer.get("clean_text")) | LOWER * lower | STRIP_ACCENTS * strip
        tables.flags |= SPACE_CHINESE * bool(normalizer.get("handle_chinese_chars"))
        tokens = self.vocabulary(model, tables)
        if not isinstance(model.get("unk_token"), str) or model["unk_token"] not in tokens:
            raise self.refusal(f"unk_token {model.get('unk_token')!r} is no token", "one of the vocabulary")
        tables.unknown = tokens[model["unk_token"]]
        most = model.get("max_input_chars_per_word", 100)
        if type(most) is not int or not 1 <= most <= 256:
            raise self.refusal(f"max_input_chars_per_word = {most!r}", "1 to 256")
        tables.most_characters = most
        for token, number in tokens.items():
            if token.startswith("##") and len(token) > 2:
                self.add(tables.parts, token[2:].encode("utf-8", "surrogatepass"), number)
            else:
                self.add(tables.words, token.encode("utf-8", "surrogatepass"), number)
        return tables

    def add(self, tokens: dict[bytes, int], token: bytes, number: int) -> None:
        if len(token) > MAX_TOKEN_BYTES:
            raise self.refusal(f"a token of {len(token)} bytes", f"at most {MAX_TOKEN_BYTES}")
        if token:
            tokens[token] = number

    def read_bpe(self, root: Mapping[str, Any], model: Mapping[str, Any]) -> TokenizerTables:
        tables = TokenizerTables(kind=BPE)
        nothing = (None, "", False)
        self.demand(
            model,
            "model",
            {
                "vocab": (),
                "merges": (),
                "unk_token": (),
                "ignore_merges": (True, False),
                "dropout": (None, 0.0),
                "continuing_subword_prefix": nothing,
                "end_of_word_suffix": nothing,
                "fuse_unk": (True, False),
                "byte_fallback": (True, False),
            },
        )
        if root.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
            raise self.refusal("a normalizer", "none before byte-level BPE")
        self._read_splitting(root, tables)
        tables.flags |= WHOLE_WORDS * bool(model.get("ignore_merges"))
        tokens = self.vocabulary(model, tables)
        letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
        for token, number in tokens.items():
            known = all(letter in letters for letter in token)
            raw = bytes(letters[letter] for letter in token) if known else token.encode("utf-8", "surrogatepass")
            if raw in tables.words:
                raise self.refusal(f"two tokens of the bytes {raw[:40]!r}", "one each")
            self.add(tables.words, raw, number)
        tables.flags |= FUSE_UNKNOWN * bool(model.get("fuse_unk"))
        unknown = model.get("unk_token")
        if unknown is not None and (not isinstance(unknown, str) or unknown not in tokens):
            raise self.refusal(f"unk_token {unknown!r} is no token", "one of the vocabulary, or none")
        tables.unknown = NONE if unknown is None else tokens[unknown]
        if model.get("byte_fallback") and any(re.fullmatch("<0x[0-9A-F]{2}>", token) for token in tokens):
            raise self.refusal("byte_fallback to tokens such as <0x0A>", "a token for each byte, or the unknown one")
        merges = model.get("merges")
        if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
            raise self.refusal("merges are no list, or too many", f"at most {MAX_TOKENS:,}")
        seen = set()
        for merge in merges:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
                raise self.refusal(f"the merge {str(merge)[:80]!r}", "two tokens")
            left, right = pair
            if left not in tokens or right not in tokens or left + right not in tokens:
                raise self.refusal(f"the merge {str(merge)[:80]!r} of unknown tokens", "tokens of the vocabulary")
            if (left, right) in seen:
                raise self.refusal(f"the merge {str(merge)[:80]!r} comes twice", "each once")
            seen.add((left, right))
            tables.merges.append((tokens[left], tokens[right], tokens[left + right]))
        return tables

    def _read_splitting(self, root: Mapping[str, Any], tables: TokenizerTables) -> None:
        """Digits one by one, then GPT-2's regular expression and letters for bytes."""
        outer = self.table(root, "pre_tokenizer")
        steps = outer.get("pretokenizers") if outer.get("type") == "Sequence" else [outer]
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps) or not steps:
            raise self.refusal("a malformed pre_tokenizer", "ByteLevel, or a sequence of Digits and ByteLevel")
        *before, last = steps
        if last.get("type") != "ByteLevel" or len(before) > 1:
            raise self.refusal("another pre_tokenizer", "ByteLevel, or a sequence of Digits and ByteLevel")
        yes_or_no = (True, False)
        options = {"add_prefix_space": yes_or_no, "trim_offsets": yes_or_no, "use_regex": (True,)}
        self.demand(last, "pre_tokenizer", options)
        tables.flags |= PREFIX_SPACE * bool(last.get("add_prefix_space", True))
        for step in before:
            if step.get("type") != "Digits":
                raise self.refusal(f"a pre_tokenizer {step.get('type')!r}", "Digits")
            self.demand(step, "Digits", {"individual_digits": (True,)})
            tables.flags |= SINGLE_DIGITS
        if before and tables.flags & PREFIX_SPACE:
            raise self.refusal("add_prefix_space behind Digits", "one of them")

    def read_added(self, root: Mapping[str, Any], tables: TokenizerTables) -> None:
        tokens = root.get("added_tokens") or []
        if not isinstance(tokens, list) or len(tokens) > 4096:
            raise self.refusal("added_tokens are no list, or too many", "at most 4096")
        for token in tokens:
            if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
                raise self.refusal("a malformed added token", "content, id and flags")
            content, number = token["content"], token.get("id")
            if type(number) is not int or not 0 <= number < MAX_TOKENS:
                raise self.refusal(f"added token {content[:80]!r} has id {number!r}", f"an id below {MAX_TOKENS:,}")
            if bool(token.get("normalized")) != bool(tokens[0].get("normalized")):
                raise self.refusal("added tokens before and after normalization", "all of them the same")
            for option in ("single_word", "lstrip", "rstrip", "normalized"):
                if token.get(option) and not (option == "normalized" and tables.kind == BPE):
                    raise self.refusal(f"added token {content[:80]!r} with {option}", f"{option} = false")
            tables.vocabulary_size = max(tables.vocabulary_size, number + 1)
            self.add(
                tables.added, content.encode("utf-8", "surrogatepass"), number | (1 << 31) * bool(token.get("special"))
            )

    def read_frame(self, root: Mapping[str, Any], tables: TokenizerTables) -> None:
        """The special tokens around a single text."""
        step = root.get("post_processor")
        steps = step.get("processors") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
        for one in steps if isinstance(steps, list) else [steps]:
            if one is None or (isinstance(one, dict) and one.get("type") == "ByteLevel"):
                continue  # it changes offsets only
            if not isinstance(one, dict) or tables.front or tables.behind:
                raise self.refusal("a malformed post_processor", "at most one frame of special tokens")
            try:
                if one.get("type") == "BertProcessing":
                    tables.front, tables.behind = [one["cls"][1]], [one["sep"][1]]
                elif one.get("type") == "TemplateProcessing":
                    self._read_template(one, tables)
                else:
                    raise self.refusal(f"a post_processor {one.get('type')!r}", "a template")
            except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
                raise self.refusal("a malformed post_processor", "a template of special tokens") from error
        numbers = [*tables.front, *tables.behind]
        if max(len(tables.front), len(tables.behind)) > MAX_FRAME or not all(type(one) is int for one in numbers):
            raise self.refusal("a malformed frame", f"at most {MAX_FRAME} special tokens on either side")
        if any(not 0 <= one < tables.vocabulary_size for one in numbers):
            raise self.refusal("a frame of unknown tokens", "tokens of the vocabulary")

    def _read_template(self, step: Mapping[str, Any], tables: TokenizerTables) -> None:
        place = tables.front
        for item in step["single"]:
            ((kind, piece),) = item.items()
            if piece["type_id"] != 0:
                raise self.refusal(f"type_id {piece['type_id']!r} in a single text", "0")
            if kind == "Sequence":
                place = tables.behind
            else:
                place += step["special_tokens"][piece["id"]]["ids"]


def _byte_letters() -> str:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2): printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))
