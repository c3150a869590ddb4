"""Where a build works, and how its result gets into place."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from edgeslim import workspace
from edgeslim.errors import BadInputError
from edgeslim.workspace import publish, scratch_folder


def listing(folder: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """What a build wants to publish."""
    folder = tmp_path / "work" / "ready"
    for name in ("net.aar", "report.html", "report.json", "maven/net/1.0.0/net.aar", "maven/net/1.0.0/net.pom"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"new {name}", encoding="utf-8")
    return folder


def test_it_lies_beside_the_output_and_goes(tmp_path: Path) -> None:
    out = tmp_path / "made" / "deep" / "out"
    with scratch_folder(out) as work:
        assert work.parent == out.parent
        (work / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), scratch_folder(out):
        raise RuntimeError("a defect")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_something_stay(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "made" / "out") as work:
        out = work.parent / "out"
        out.mkdir()
        (out / "net.aar").touch()
    assert set(listing(tmp_path)) == {"made", "made/out", "made/out/net.aar"}


def test_a_linked_output_is_worked_on_where_it_lies(tmp_path: Path, ready: Path) -> None:
    """Beside the link may be another file system than behind it, and a rename doesn't cross."""
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    link = tmp_path / "here" / "out"
    link.parent.mkdir()
    link.symlink_to(real)
    with scratch_folder(link) as work:
        assert work.parent == real.parent
        publish(ready, link)
    assert link.is_symlink()
    assert (real / "net.aar").read_text(encoding="utf-8") == "new net.aar"
    assert list((tmp_path / "here").iterdir()) == [link]


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path, ready: Path) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "net.aar").symlink_to(tmp_path / "precious")
    publish(ready, out)
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "mine"
    assert not (out / "net.aar").is_symlink()


def test_another_file_system_is_worked_on_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "volume"
    out.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    with scratch_folder(out) as work:
        assert work.parent == out
    assert listing(tmp_path) == {"volume": None}


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_what_a_killed_build_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if place == "inside":
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    home = out if place == "inside" else tmp_path
    (home / ".edgeslim-build-abcd_123" / "0-export").mkdir(parents=True)
    (home / ".edgeslim-notes").mkdir()
    with scratch_folder(out):
        pass
    assert not (home / ".edgeslim-build-abcd_123").exists()
    assert (home / ".edgeslim-notes").exists()


def test_two_builds_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out") as first, scratch_folder(tmp_path / "out") as second:
        assert first != second
        assert first.is_dir()


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_in_the_way(tmp_path: Path, out: str, refuses: Any) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with refuses(BadInputError, where=str(tmp_path / out), got="", expected="a folder"), scratch_folder(tmp_path / out):
        pass
    assert listing(tmp_path) == {"taken": "mine"}


def test_a_link_that_points_nowhere(tmp_path: Path, ready: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone" / "deep")
    with scratch_folder(tmp_path / "out") as work:
        assert work.parent == tmp_path / "gone"
    assert not (tmp_path / "gone").exists()


def test_a_full_disk_is_told_by_the_outputs_name(tmp_path: Path, refuses: Any) -> None:
    out = tmp_path / "out"
    got = "No space left on device (while writing weights.bin)"
    with (
        refuses(BadInputError, where=str(out), got=got, expected="room", hint="untouched"),
        scratch_folder(out) as work,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(work / "0-export" / "weights.bin"))
    with refuses(BadInputError, where="/elsewhere/x", got="Input/output error", expected="room"), scratch_folder(out):
        raise OSError(errno.EIO, "Input/output error", "/elsewhere/x")
    assert list(tmp_path.iterdir()) == []


def test_publish_replaces_and_keeps(tmp_path: Path, ready: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("net.aar", "mine.txt"):
        (out / name).write_text("old", encoding="utf-8")
    publish(ready, out)
    files = {name: text for name, text in listing(out).items() if text is not None}
    assert files.pop("mine.txt") == "old"
    assert files == {name: f"new {name}" for name in files}
    assert len(files) == 5


def test_the_package_goes_first_and_the_reports_before_the_folders(
    tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (told.append(str(path.relative_to(ready))), replace(path, to))
    )
    publish(ready, tmp_path / "out")
    assert told == ["net.aar", "report.html", "report.json", "maven/net/1.0.0/net.aar", "maven/net/1.0.0/net.pom"]


def test_a_folder_that_cannot_be_made_stops_it_before_the_first_file(tmp_path: Path, ready: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "net.aar").write_text("old", encoding="utf-8")
    (out / "maven").write_text("a file of the user's", encoding="utf-8")
    with pytest.raises(OSError, match="maven"):
        publish(ready, out)
    assert listing(out) == {"maven": "a file of the user's", "net.aar": "old"}


def test_no_signal_stops_it_halfway(tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(path: Path, to: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(ready, tmp_path / "out")
    assert len([text for text in listing(tmp_path / "out").values() if text]) == 5
    assert workspace.__all__ == ["publish", "scratch_folder", "sweep"]
