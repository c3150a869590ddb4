"""Steps run once for each set of inputs; their files and facts come back as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslim.cache import Cache, hash_parts
from edgeslim.core import Quiet
from edgeslim.steps import StepFacts, Steps, hash_folder

FACTS = StepFacts(changed=2, engine="torch", bytes=7, skipped={"a": "small"}, metrics={"x": 0.5})


class Telling(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def step(self, what: str) -> None:
        self.told.append(what)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def made() -> list[str]:
    """What was really made."""
    return []


@pytest.fixture
def make(made: list[str]) -> Callable[[Path, Path], StepFacts]:
    def run(folder: Path, scratch: Path) -> StepFacts:
        made.append(folder.name)
        assert scratch.is_dir()
        (scratch / "litter").touch()
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"a graph")
        return FACTS

    return run


def steps(
    tmp_path: Path, cache: Cache | None, number: int, progress: Quiet | None = None, onnx: str = "1"
) -> tuple[Steps, Path]:
    work = tmp_path / f"work-{number}"
    work.mkdir()
    return Steps(work, cache, {"onnx": onnx}, progress or Quiet()), work


def test_a_step_runs_once(tmp_path: Path, cache: Cache, made: list[str], make: Callable[..., StepFacts]) -> None:
    told = [Telling(), Telling()]
    folders, records = [], []
    for number, progress in enumerate(told):
        runner, work = steps(tmp_path, cache, number, progress)
        folders.append(runner.run("export", ({"a": 1}, "b"), make))
        records += runner.records
        assert [path.name for path in work.iterdir()] == ["0-export"], "scratch is gone"
    assert made == ["0-export"]
    assert hash_folder(folders[0]) == hash_folder(folders[1])
    assert [record.cached for record in records] == [False, True]
    assert replace(records[0], seconds=0, cached=True) == replace(records[1], seconds=0)
    assert (records[1].changed, records[1].engine, records[1].bytes) == (2, "torch", 7)
    assert [item.told for item in told] == [["export"], ["export (unchanged)"]]


@pytest.mark.parametrize(
    ("name", "inputs", "onnx"),
    [("encode", "a", "1"), ("export", "b", "1"), ("export", "ab", "1"), ("export", "a", "2")],
    ids=["name", "input", "one more", "version"],
)
def test_what_differs_runs_again(
    tmp_path: Path, cache: Cache, made: list[str], make: Callable[..., StepFacts], name: str, inputs: str, onnx: str
) -> None:
    steps(tmp_path, cache, 0)[0].run("export", ("a",), make)
    steps(tmp_path, cache, 1, onnx=onnx)[0].run(name, tuple(inputs), make)
    assert len(made) == 2


def test_without_reuse_nothing_is_kept(
    tmp_path: Path, cache: Cache, made: list[str], make: Callable[..., StepFacts]
) -> None:
    for number in range(2):
        steps(tmp_path, cache, number)[0].run("export", ("a",), make, reuse=False)
    assert len(made) == 2
    assert cache.entries() == ()


def test_without_a_cache_it_always_runs(tmp_path: Path, made: list[str], make: Callable[..., StepFacts]) -> None:
    for number in range(2):
        assert (steps(tmp_path, None, number)[0].run("export", ("a",), make) / "model.onnx").is_file()
    assert len(made) == 2


def test_a_step_that_fails_is_not_kept(tmp_path: Path, cache: Cache) -> None:
    def fail(folder: Path, scratch: Path) -> StepFacts:
        folder.mkdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steps(tmp_path, cache, 0)[0].run("export", ("a",), fail)
    assert cache.entries() == ()


@pytest.mark.parametrize("facts", [{}, {"changed": "two"}, {"changed": 1, "more": 2}, {"changed": 1, "skipped": 3}])
def test_facts_of_another_shape_count_as_absent(
    tmp_path: Path, cache: Cache, made: list[str], make: Callable[..., StepFacts], facts: dict[str, object]
) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model.onnx").write_bytes(b"something else")
    cache.store(hash_parts("export", ("a",), {"onnx": "1"}), "export", tmp_path / "odd", facts)
    runner, _ = steps(tmp_path, cache, 0)
    folder = runner.run("export", ("a",), make)
    assert made == ["0-export"]
    assert (folder / "model.onnx").read_bytes() == b"a graph"


def test_two_steps_of_one_name(tmp_path: Path, cache: Cache, make: Callable[..., StepFacts]) -> None:
    runner, work = steps(tmp_path, cache, 0)
    folders = [runner.run("prune", (number,), make) for number in range(2)]
    assert folders == [work / "0-prune", work / "1-prune"]


def test_hash_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    assert list(hash_folder(tmp_path)) == ["a", "b/x"]
    assert hash_folder(tmp_path)["b/x"].startswith("ba7816bf")
