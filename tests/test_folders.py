"""Temporary folders: gone after their block, after a signal, and, with the next process's help, after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeslim.folders import claimed_folder, remove_abandoned, uninterrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CHILD = """
import os, sys, time
from pathlib import Path
from typing import Any
from edgeslim.folders import claimed_folder
with claimed_folder(Path(sys.argv[1]), ".job-") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "half").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


def start(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_it_is_removed_with_all_in_it(tmp_path: Path) -> None:
    with claimed_folder(tmp_path, ".job-") as folder:
        assert folder.parent == tmp_path
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claimed_folder(tmp_path, ".job-"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_in_use_stays_and_one_of_a_killed_process_goes(tmp_path: Path) -> None:
    process, folder = start(tmp_path)
    try:
        remove_abandoned(tmp_path, ".job-")
        assert (folder / "deep" / "half").is_file()
    finally:
        end(process)
    assert folder.is_dir()
    remove_abandoned(tmp_path, ".job-")
    assert list(tmp_path.iterdir()) == []


def test_the_own_one_stays_too(tmp_path: Path) -> None:
    with claimed_folder(tmp_path, ".job-") as folder:
        remove_abandoned(tmp_path, ".job-")
        assert folder.is_dir()


def test_what_only_looks_similar_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "mine").mkdir(parents=True)
    for name in (".job-", ".job-notes", ".job-ABCDEFGH", ".job-12345678.bak", "job-12345678"):
        (tmp_path / name).mkdir()
    (tmp_path / ".job-afile123").touch()
    (tmp_path / ".job-alink123").symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path, ".job-")
    assert sorted(tmp_path.rglob("*")) == before


def test_swept_away_before_it_was_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between making a folder and locking it: then there is another."""
    real, swept = os.open, []

    def slow(path: Path, flags: int) -> int:
        if not swept:
            swept.append(path)
            monkeypatch.setattr(os, "open", real)
            remove_abandoned(tmp_path, ".job-")
        return real(path, flags)

    monkeypatch.setattr(os, "open", slow)
    with claimed_folder(tmp_path, ".job-") as folder:
        assert swept
        assert folder != swept[0]
        assert [*tmp_path.iterdir()] == [folder]


def test_signals_wait_until_the_block_has_ended() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("still here")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["still here"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_get_no_signals_anyway() -> None:
    ended = []

    def work() -> None:
        with uninterrupted():
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]


def test_a_signal_before_all_of_them_are_held_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the removal begins: the first handler is in place, the second not yet."""
    plain, before = signal.signal, [signal.getsignal(number) for number in ENDING]
    calls: list[int] = []

    def late(number: int, handler: Any) -> Any:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(number, handler)

    def leave() -> None:
        with claimed_folder(tmp_path, ".job-") as folder:
            (folder / "file").write_bytes(b"1")
            monkeypatch.setattr(signal, "signal", late)

    with pytest.raises(KeyboardInterrupt):
        leave()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(number) for number in ENDING] == before
