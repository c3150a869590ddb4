"""Texts to a model's inputs, by the tokenizer that lies with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeslim.core import Batch
from edgeslim.datasets.data import Example, class_index
from edgeslim.errors import BadInputError

__all__ = ["Tokenizer", "encode_examples", "load_tokenizer"]

TOKENIZER_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Tokenizer(Protocol):
    """What ``encode_examples`` needs of a Hugging Face tokenizer."""

    pad_token: Any

    def __call__(
        self,
        text: list[str],
        *,
        truncation: bool,
        max_length: int,
        padding: bool | str,
        return_attention_mask: bool,
        return_token_type_ids: bool,
    ) -> Mapping[str, Any]:
        """Encodes texts: lists of token ids, and of masks, by input name."""
        ...


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a local Hugging Face model folder, the fast kind where there is one.

    Code that the folder brings along is never run.

    Raises:
        BadInputError: the folder holds no tokenizer, or one that doesn't load.
    """
    if not folder.is_dir():
        raise BadInputError(str(folder), "no such folder", expected="a model folder with a tokenizer")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, use_fast=True)
    except Exception as error:  # a broken tokenizer file raises whatever its parser does
        raise BadInputError(
            str(folder),
            f"its tokenizer doesn't load: {_first_line(error)}",
            expected="tokenizer.json, or the vocabulary files of a tokenizer that transformers knows",
            hint="tokenizer.save_pretrained(folder) writes them",
        ) from error


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    input_names: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 1,
    labels: Mapping[str, int] | None = None,
    pad: bool = False,
) -> tuple[Batch, ...]:
    """Tokenizes ``examples`` into runs of ``batch_size`` samples, in order: int64 ``[B, S]`` for each input name.

    Texts are cut at ``max_length`` tokens. A run is as long as its longest text, so nothing is padded where
    ``batch_size`` is 1; with ``pad`` every text has ``max_length`` tokens. ``labels`` gives the class index of each
    label name (a model's ``label2id``).

    Raises:
        BadInputError: the model wants an input that a tokenizer doesn't give, or a label isn't among ``labels``.
    """
    foreign = [name for name in input_names if name not in TOKENIZER_OUTPUTS]
    if foreign or "input_ids" not in input_names:
        got = f'the model input "{foreign[0]}" comes from no tokenizer' if foreign else 'no model input "input_ids"'
        raise BadInputError(
            "model",
            got,
            expected="inputs among " + ", ".join(TOKENIZER_OUTPUTS),
            hint="give the data as an .npz file with one array a model input",
        )
    if batch_size > 1 and tokenizer.pad_token is None:
        raise BadInputError("tokenizer", f"no padding token, for runs of {batch_size} texts", expected="runs of 1 text")
    if pad and tokenizer.pad_token is None:
        raise BadInputError("tokenizer", "no padding token", expected="one, for texts of a fixed length")
    batches = []
    for start in range(0, len(examples), batch_size):
        group = examples[start : start + batch_size]
        encoded = tokenizer(
            [example.text for example in group],
            truncation=True,
            max_length=max_length,
            padding="max_length" if pad else batch_size > 1,
            return_attention_mask="attention_mask" in input_names,
            return_token_type_ids="token_type_ids" in input_names,
        )
        for name in input_names:
            if name not in encoded:
                raise BadInputError("tokenizer", f'it gives no "{name}"', expected="all of " + ", ".join(input_names))
        feed = {name: np.asarray(encoded[name], dtype=np.int64) for name in input_names}
        classes = [class_index(example.label, labels) for example in group if example.label is not None]
        if classes and len(classes) != len(group):
            raise BadInputError("data", "some samples have a label, others none", expected="a label for each, or none")
        batches.append(Batch(feed=feed, rows=len(group), labels=tuple(classes)))
    return tuple(batches)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
