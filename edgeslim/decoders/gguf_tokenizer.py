"""The tokenizer inside a GGUF file, written as a ``tokenizer.json``.

Byte-level BPE (the file's ``gpt2``) in the forms of GPT-2 and SmolLM: the latter splits numbers into digits first.
Control tokens of the file become special tokens; whether texts start with one is what the file says.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from edgeslim.cache import default_root, hash_parts
from edgeslim.decoders.gguf import open_gguf
from edgeslim.errors import BadInputError
from edgeslim.replacing import replaced_when_whole

__all__ = ["extract_tokenizer", "write_gguf_tokenizer"]

FORM = 1
"""Raised where the same GGUF file gives another ``tokenizer.json`` than before."""

DIGITS_APART = {"gpt-2": False, "default": False, "smollm": True}
CONTROL, USER_DEFINED = 3, 4


def write_gguf_tokenizer(path: Path, folder: Path) -> None:
    """Writes ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of the GGUF file into ``folder``.

    Raises:
        BadInputError: no GGUF file, or a tokenizer of another kind.
        MissingToolError: the ``gguf`` package isn't installed.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = open_gguf(path).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.{key}")
        return default if field is None else field.contents()

    kind, split = value("ggml.model"), value("ggml.pre", "default")
    if kind != "gpt2" or split not in DIGITS_APART:
        raise BadInputError(
            f"{path}: tokenizer",
            f"{kind}, split as {split}",
            expected="gpt2, split as one of " + ", ".join(DIGITS_APART),
            hint="name the folder of its tokenizer.json with the key `tokenizer`",
        )
    tokens, types = value("ggml.tokens"), value("ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in value("ggml.merges")]
    try:
        made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    except Exception as error:  # the library raises plain Exceptions for merges of unknown tokens
        raise BadInputError(f"{path}: tokenizer", str(error)[:200], expected="merges of its own tokens") from error
    digits = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_APART[split] else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    marked = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    made.add_special_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == CONTROL])
    made.add_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == USER_DEFINED])
    special = {
        f"{name}_token": tokens[value(f"ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if value(f"ggml.{key}_token_id") is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(value("ggml.add_bos_token", False)),  # noqa: FBT003
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids"],
        **special,
        **({"chat_template": value("chat_template")} if value("chat_template") else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_when_whole(folder / "tokenizer.json") as temporary:
        made.save(str(temporary))
    with replaced_when_whole(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def extract_tokenizer(path: Path) -> Path:
    """A folder in the cache with the tokenizer of the GGUF file, which is written there only once.

    Raises:
        BadInputError: as ``write_gguf_tokenizer``.
    """
    facts = path.stat()
    root = default_root() if os.environ.get("EDGESLIM_CACHE") != "off" else Path(tempfile.gettempdir()) / "edgeslim"
    folder = root / "tokenizers" / hash_parts(str(path), facts.st_size, facts.st_mtime_ns, FORM)[:32]
    if not all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        write_gguf_tokenizer(path, folder)
    return folder
