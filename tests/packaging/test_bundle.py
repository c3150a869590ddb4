from __future__ import annotations

import hashlib
import json
from pathlib import Path

from edgeslim.packaging.bundle import file_entry, tokenizer_extras, write_manifest


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def test_file_entry(tmp_path: Path) -> None:
    content = b"0123456789" * 300_000
    (tmp_path / "f").write_bytes(content)
    assert file_entry(tmp_path / "f") == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_no_tokenizer() -> None:
    assert tokenizer_extras(None) == ()


def test_a_fast_tokenizer_needs_no_vocabulary_files(tmp_path: Path) -> None:
    folder = touch(tmp_path, "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "config.json")
    assert dict(tokenizer_extras(folder)) == {
        "tokenizer/tokenizer.json": folder / "tokenizer.json",
        "tokenizer/tokenizer_config.json": folder / "tokenizer_config.json",
    }


def test_a_slow_tokenizer_keeps_them(tmp_path: Path) -> None:
    folder = touch(tmp_path, "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "model.safetensors")
    names = [name for name, _ in tokenizer_extras(folder)]
    assert names == ["tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/vocab.txt"]


def test_manifest(tmp_path: Path) -> None:
    touch(tmp_path, "b", "a")
    path = tmp_path / "manifest.json"
    write_manifest(path, {"name": "größe", "task": {"pooling": "mean"}}, {"z/b": tmp_path / "b", "a": tmp_path / "a"})
    text = path.read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert list(manifest) == ["schema", "name", "task", "files"]
    assert manifest["schema"] == 1
    assert manifest["task"] == {"pooling": "mean"}
    assert list(manifest["files"]) == ["a", "z/b"]
    assert manifest["files"]["a"] == {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()}
    assert "größe" in text
    assert text.endswith("}\n")


def test_the_same_facts_give_the_same_bytes_in_whatever_order_files_come(tmp_path: Path) -> None:
    touch(tmp_path, "b", "a")
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_manifest(first, {"name": "x"}, {"a": tmp_path / "a", "b": tmp_path / "b"})
    write_manifest(second, {"name": "x"}, {"b": tmp_path / "b", "a": tmp_path / "a"})
    assert first.read_bytes() == second.read_bytes()
