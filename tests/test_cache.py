"""The cache by itself: what it gives back, what it refuses, what it removes, and who shares it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslim.cache import Cache, default_root, hash_file, hash_parts
from edgeslim.errors import BadInputError

KEY, OTHER = hash_parts("one"), hash_parts("two")
FILES = {"model.onnx": b"a graph" * 9, "deep/weights.bin": bytes(range(256)) * 4, "deep/copy.bin": b"a graph" * 9}
FACTS = {"changed": 3, "metrics": {"x": 0.1}, "skipped": {"a": "too small"}}


def make_folder(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def stored(cache: Cache, tmp_path: Path) -> Cache:
    """A cache with one entry."""
    cache.store(KEY, "export", make_folder(tmp_path / "made"), FACTS)
    assert [entry.key for entry in cache.entries()] == [KEY]
    return cache


def test_what_was_stored_comes_back(stored: Cache, tmp_path: Path) -> None:
    assert stored.fetch(KEY, tmp_path / "again") == FACTS
    assert read_folder(tmp_path / "again") == FILES
    assert stored.read(KEY) == FACTS


def test_copies_do_not_reach_back_into_the_cache(stored: Cache, tmp_path: Path) -> None:
    stored.fetch(KEY, tmp_path / "again")
    inside = {path.stat().st_ino for path in stored.root.rglob("*")}
    outside = {path.stat().st_ino for path in (tmp_path / "again").rglob("*")}
    assert not inside & outside
    (tmp_path / "again" / "model.onnx").write_bytes(b"edited")
    stored.fetch(KEY, tmp_path / "third")
    assert read_folder(tmp_path / "third") == FILES


def test_equal_files_are_stored_once_and_linked(stored: Cache, tmp_path: Path) -> None:
    (entry,) = stored.entries()
    record = (stored.root / KEY / "entry.json").stat().st_size
    assert entry.bytes == record + sum(map(len, set(FILES.values())))
    stored.fetch(KEY, tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").samefile(tmp_path / "again" / "deep" / "copy.bin")


def test_what_is_not_there(cache: Cache, stored: Cache, tmp_path: Path) -> None:
    assert cache.fetch(OTHER, tmp_path / "again") is None
    assert cache.read(OTHER) is None
    assert not (tmp_path / "again").exists()


def test_a_record_without_files(cache: Cache, tmp_path: Path) -> None:
    cache.store(KEY, "build", None, {"a": [1, None]})
    assert cache.read(KEY) == {"a": [1, None]}
    assert cache.fetch(KEY, tmp_path / "again") == {"a": [1, None]}
    assert read_folder(tmp_path / "again") == {}


def test_entries_never_change_unless_that_is_asked_for(cache: Cache) -> None:
    cache.store(KEY, "build", None, {"a": 1})
    cache.store(KEY, "build", None, {"a": 2})
    assert cache.read(KEY) == {"a": 1}
    cache.store(KEY, "build", None, {"a": 3}, replace=True)
    assert cache.read(KEY) == {"a": 3}
    assert names(cache.root) == {KEY}


# Corrupt entries


def entry_json(place: Path, **changed: Any) -> None:
    path = place / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def resealed(**changed: Any) -> Callable[[Path], None]:
    """A record that somebody rewrote by hand, hash included."""

    def spoil(place: Path) -> None:
        entry = json.loads((place / "entry.json").read_text()) | changed
        body = {name: entry[name] for name in ("step", "facts", "files")}
        (place / "entry.json").write_text(json.dumps(entry | {"sha256": hash_parts(KEY, body)}))

    return spoil


def on_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        path = place / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


HERE = "entry.json"
SECRET = {"files": {"../../secret": hash_parts("x")}}
CORRUPT: dict[str, Callable[[Path], None]] = {
    **{f"flipped {name}": on_file(name, flip) for name in (HERE, *(f"files/{name}" for name in FILES))},
    **{f"cut {name}": on_file(name, lambda b: b[:-1]) for name in (HERE, *(f"files/{name}" for name in FILES))},
    **{f"emptied {name}": on_file(name, lambda _: b"") for name in (HERE, *(f"files/{name}" for name in FILES))},
    **{
        f"gone {name}": lambda place, name=name: (place / name).unlink()  # type: ignore[misc]
        for name in (HERE, *(f"files/{name}" for name in FILES))
    },
    "garbage": on_file(HERE, lambda _: b"\xff\x00garbage"),
    "deep": on_file(HERE, lambda _: b"[" * 100_000),
    "huge": on_file(HERE, lambda b: b + b" " * (17 << 20)),
    "a list": on_file(HERE, lambda _: b"[]"),
    "a long number": on_file(HERE, lambda _: b'{"step": ' + b"9" * 10_000 + b"}"),
    "no step": resealed(step=None),
    "facts of another kind": resealed(facts=[1]),
    "files of another kind": resealed(files=["model.onnx"]),
    "a hash of another kind": resealed(files={"model.onnx": 3}),
    "another fact": lambda place: entry_json(place, facts={**FACTS, "changed": 4}),
    "another step": lambda place: entry_json(place, step="encode"),
    "fewer files": lambda place: entry_json(place, files={}),
    "no seal": lambda place: entry_json(place, sha256=None),
    "a name above": resealed(**SECRET),
    "an absolute name": resealed(files={"/etc/hostname": hash_parts("x")}),
    "an empty name": resealed(files={"": hash_parts("x")}),
    "a dot": resealed(files={".": hash_parts("x")}),
    "a zero byte": resealed(files={"a\0b": hash_parts("x")}),
    "a lone surrogate": resealed(files={"\udc80\ud800": hash_parts("x")}),
    "a file that is a folder's name": resealed(files={"deep": hash_parts("x")}),
}


@pytest.mark.parametrize("spoil", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_entry_is_removed_and_made_again(
    stored: Cache, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    spoil(stored.root / KEY)
    assert stored.fetch(KEY, tmp_path / "again") is None
    assert not (tmp_path / "again").exists()
    assert names(stored.root) == set()
    stored.store(KEY, "export", tmp_path / "made", FACTS)
    assert stored.fetch(KEY, tmp_path / "again") == FACTS
    assert read_folder(tmp_path / "again") == FILES


def test_an_entry_under_another_key_is_none(stored: Cache, tmp_path: Path) -> None:
    (stored.root / KEY).rename(stored.root / OTHER)
    assert stored.read(OTHER) is None
    assert names(stored.root) == set()


def test_corrupt_entries_go_even_if_nobody_asks_for_them(stored: Cache) -> None:
    (stored.root / KEY / "entry.json").write_bytes(b"{")
    (stored.root / OTHER).write_bytes(b"a file")
    stored.store(hash_parts("three"), "encode", None, {})
    assert names(stored.root) == {hash_parts("three")}


# The limit, and clearing


def test_the_limit_holds_and_the_least_lately_used_goes_first(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made", {"x": bytes(10_000)})
    cache = Cache(tmp_path / "cache", limit_bytes=35_000)
    keys = [hash_parts(number) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.store(key, "export", folder, {})
        os.utime(cache.root / key, (1000 + age, 1000 + age))
    assert [entry.key for entry in cache.entries()] == keys[:3]
    assert cache.read(keys[0]) == {}  # used now: so the second is the oldest
    cache.store(keys[3], "export", folder, {})
    assert {entry.key for entry in cache.entries()} == {keys[0], keys[2], keys[3]}
    assert sum(entry.bytes for entry in cache.entries()) <= 35_000


def test_an_entry_above_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=100)
    cache.store(KEY, "export", make_folder(tmp_path / "made"), FACTS)
    assert names(cache.root) == set()


def test_the_environment_says_where_and_how_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("EDGESLIM_CACHE_LIMIT", "2kB")
    found = Cache.default()
    assert found is not None
    assert (found.root, found.limit_bytes) == (tmp_path / "here" / "v1", 2000)
    monkeypatch.setenv("EDGESLIM_CACHE_LIMIT", "plenty")
    with pytest.raises(BadInputError, match="EDGESLIM_CACHE_LIMIT: 'plenty'"):
        Cache.default()
    monkeypatch.setenv("EDGESLIM_CACHE", "off")
    assert Cache.default() is None
    monkeypatch.delenv("EDGESLIM_CACHE")
    monkeypatch.delenv("EDGESLIM_CACHE_LIMIT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edgeslim"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGESLIM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert Cache.default() is None


def test_clear(stored: Cache) -> None:
    stored.store(OTHER, "encode", None, {})
    assert stored.clear() == 2
    assert not stored.root.exists()
    assert stored.clear() == 0


def test_what_is_not_the_caches_stays(stored: Cache) -> None:
    (stored.root / "notes").mkdir()
    (stored.root / "notes" / "mine.txt").write_text("mine")
    (stored.root / ".old-mine").mkdir()
    (stored.root / ".new-mine").mkdir()
    stored.store(OTHER, "encode", None, {})
    assert stored.clear() == 2
    assert names(stored.root) == {"notes", ".old-mine", ".new-mine"}


# Where it can't be written, and who else is there


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", Path("/proc/nowhere")):
        cache = Cache(root)
        cache.store(KEY, "export", make_folder(tmp_path / "made"), FACTS)
        assert cache.fetch(KEY, tmp_path / "again") is None
        assert (cache.entries(), cache.clear()) == ((), 0)


def test_no_room_leaves_nothing_half_written(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        cache.store(KEY, "export", make_folder(tmp_path / "made"), FACTS)
    assert names(cache.root) == set()


def test_no_room_for_the_copy_does_not_cost_the_entry(
    stored: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        assert stored.fetch(KEY, tmp_path / "again") is None
    assert not (tmp_path / "again").exists()
    assert stored.fetch(KEY, tmp_path / "again") == FACTS


def test_a_cache_that_is_only_read_serves(stored: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Read-only file system")

    monkeypatch.setattr(os, "utime", forbidden)
    assert stored.fetch(KEY, tmp_path / "again") == FACTS


def test_what_killed_builds_left_goes_with_the_next_entry(stored: Cache) -> None:
    code = (
        "import os, pathlib, sys\nfrom edgeslim.folders import claimed_folder\n"
        f"with claimed_folder(pathlib.Path({str(stored.root)!r}), '.new-') as folder:\n"
        "    (folder / 'half').write_bytes(b'x')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (stored.root / f".old-{KEY}-12-34").mkdir()
    assert len(names(stored.root)) == 3
    stored.store(OTHER, "encode", None, {})
    assert names(stored.root) == {KEY, OTHER}


WORKER = """
import sys
from pathlib import Path
from edgeslim.cache import Cache, hash_parts
root, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache = Cache(Path(root) / "cache", limit_bytes=60_000)
folder = Path(root) / f"made-{name}"
folder.mkdir()
hits = 0
for number in range(rounds):
    key, content = hash_parts(number % 9), bytes([number % 9]) * 10_000
    place = Path(root) / f"{name}-{number}"
    found = cache.fetch(key, place)
    if found is not None:
        assert found == {"number": number % 9}, found
        assert (place / "x").read_bytes() == content
        hits += 1
    else:
        assert not place.exists()
        (folder / "x").write_bytes(content)
        cache.store(key, "step", folder, {"number": number % 9})
print(hits)
"""


def test_processes_share_it_safely(tmp_path: Path) -> None:
    """Three writers and readers of nine entries, of which five find room: whatever is found is whole."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number), "60"], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    ended = [(worker.communicate(timeout=60)[0], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0, 0, 0]
    cache = Cache(tmp_path / "cache")
    assert sum(entry.bytes for entry in cache.entries()) <= 60_000 + 10_500  # the last ones may have trimmed at once
    assert all(len(name) == 64 for name in names(cache.root))


def test_threads_share_it_safely(cache: Cache, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made")
    threads = [threading.Thread(target=cache.store, args=(KEY, "export", folder, FACTS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(cache.root) == {KEY}
    assert cache.fetch(KEY, tmp_path / "again") == FACTS


# Hashes


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_parts({"a": 1, "b": 2}) == hash_parts({"b": 2, "a": 1})
    different = [hash_parts(*parts) for parts in ((), ("a",), ("a", None), (["a"],), ("a", "b"), ("ab",), (1,), ("1",))]
    assert len(set(different)) == len(different)
