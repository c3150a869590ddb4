"""Pooling as sentence-transformers folders describe it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgeslim.errors import BadInputError
from edgeslim.pooling import pooling_from_folder


def sentence_model(folder: Path, pooling: object, *types: str, path: str = "1_Pooling") -> Path:
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": path if "Pooling" in kind else "x", "type": kind} for kind in types]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(pooling if isinstance(pooling, str) else json.dumps(pooling))
    return folder


POOLING = "sentence_transformers.models.Pooling"
NORMALIZE = "sentence_transformers.models.Normalize"


@pytest.mark.parametrize(
    ("pooling", "types", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, (POOLING, NORMALIZE), ("mean", True)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, (POOLING,), ("cls", False)),
        ({"pooling_mode": "cls"}, (POOLING, NORMALIZE), ("cls", True)),
        ({"word_embedding_dimension": 384}, (POOLING, NORMALIZE), ("mean", True)),
        ({}, (NORMALIZE,), ("none", True)),
    ],
)
def test_pooling_from_folder(
    tmp_path: Path, pooling: object, types: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    assert pooling_from_folder(sentence_model(tmp_path, pooling, *types)) == expected


def test_pooling_of_a_plain_folder_is_the_scaled_mean(tmp_path: Path) -> None:
    assert pooling_from_folder(tmp_path) == ("mean", True)


@pytest.mark.parametrize(
    ("pooling", "path", "got"),
    [
        ({"pooling_mode_max_tokens": True}, "1_Pooling", "pooling max_tokens\n  expected: mean or cls"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "1_Pooling", "pooling max_tokens, mean"),
        ([], "1_Pooling", "a list\n  expected: a table of pooling modes"),
        ("{", "1_Pooling", "not valid JSON"),
        ("[" * 100_000, "1_Pooling", "not valid JSON"),
        (" " * ((1 << 20) + 1), "1_Pooling", "bytes\n  expected: a JSON file of at most"),
        ({}, "2_Pooling", "No such file"),
        ({}, "../outside", "expected: a folder inside the model's"),
    ],
)
def test_pooling_from_folder_refuses(tmp_path: Path, pooling: object, path: str, got: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(got)):
        pooling_from_folder(sentence_model(tmp_path, pooling, POOLING, path=path))


def test_pooling_from_folder_refuses_modules_that_are_no_list(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('{"Pooling": 1}')
    with pytest.raises(BadInputError, match="a list of modules"):
        pooling_from_folder(tmp_path)
