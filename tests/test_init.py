"""``edgeslim init``: the project file that it writes is parsed, complete, and builds as it is."""

from __future__ import annotations

import dataclasses
import re
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import cli
from edgeslim.checks import latency
from edgeslim.errors import BadInputError, UsageError
from edgeslim.project import Overrides, ProjectFile, plan_build
from edgeslim.scaffold import find_model, make_scaffold
from edgeslim.target import list_targets

TABLES = ("data", "preprocessing", "export", "budget", "android")
OFF = re.compile(r"^# (\w+ = .+)$", re.MULTILINE)
Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Init:
    """Runs ``edgeslim init`` in the folder ``project``, in this process."""
    folder = tmp_path / "project"
    folder.mkdir()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["edgeslim", "init", *arguments])
        code = cli.run()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return code, written.out, written.err

    return run


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys_of(kind: type) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def test_every_key_of_a_project_file_stands_in_it(tiny_bert: Path, tmp_path: Path) -> None:
    """Those that are off, too: a key that is new in the parser is missed here."""
    text = make_scaffold(str(tiny_bert), None, tmp_path).text
    tables = re.split(r"^\[(\w+)\]\n", text, flags=re.MULTILINE)
    found = dict(zip(["", *tables[1::2]], tables[::2], strict=True))
    plain = ProjectFile()
    wanted = {"": keys_of(ProjectFile) - {*TABLES, "steps"}}
    wanted |= {name: keys_of(type(getattr(plain, name))) for name in TABLES}
    assert set(found) == set(wanted)
    for name, part in found.items():
        part, _, _ = part.partition("# [[steps]]")
        assert set(re.findall(r"^(?:# )?(\w+) = ", part, re.MULTILINE)) == wanted[name], name
        for line in part.splitlines():  # and each has a word of explanation right above
            assert not line or line.startswith("#") or " = " in line


def test_each_setting_that_is_off_can_be_put_on(tiny_bert: Path, tmp_path: Path) -> None:
    text = make_scaffold(str(tiny_bert), None, tmp_path).text
    (tmp_path / "recipe.toml").write_text('[[steps]]\nuse = "quantize_int8"\n', encoding="utf-8")
    found = list(OFF.finditer(text))
    assert len(found) >= 15
    for match in found:
        line = match[1]
        changed = text.replace(match[0], line, 1)
        if line.startswith(("calibration =", "evaluation =")):  # the one needs the other
            changed = text.replace("# calibration =", "calibration =", 1).replace("# evaluation =", "evaluation =", 1)
        if line.startswith(("use =", "method =")):
            changed = re.sub(r"^# (?=\[\[steps|use =|method =)", "", text, flags=re.MULTILINE)
        (tmp_path / "edgeslim.toml").write_text(changed, encoding="utf-8")
        plan_build(Overrides(), tmp_path)


def test_a_sentence_encoder_builds_as_it_is(init: Init, tiny_bert: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(tiny_bert, project / "Tiny_BERT")
    code, out, err = init()
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "wrote edgeslim.toml: tiny-bert (huggingface), feature-extraction, for android-arm64"
    assert out.splitlines()[-1] == "next: edgeslim build"
    table = tomllib.loads((project / "edgeslim.toml").read_text(encoding="utf-8"))
    assert table == {
        "model": "Tiny_BERT",
        "name": "tiny-bert",
        "task": "feature-extraction",
        "target": "android-arm64",
        "data": {},
        "preprocessing": {},
        "export": {},
        "budget": {"max_drop": 0.01},
        "android": {},
    }
    text = (project / "edgeslim.toml").read_text(encoding="utf-8")
    assert "its licence: apache-2.0" in text
    assert "the model takes 128" in text
    for profile in list_targets():
        assert f"#   {profile.name}: {profile.summary}\n" in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        report = edgeslim.build(folder=project)
    assert not report.failed()
    assert (project / "out" / "android-arm64" / "tiny-bert.aar").is_file()
    guess = re.search(r'# max_size = "([\d.]+)MB"', text)
    assert guess is not None
    assert report.artifact.bytes < float(guess[1]) * 1e6 * 1.2


def test_a_classifier(init: Init, tiny_classifier: Path, tmp_path: Path) -> None:
    assert init(str(tiny_classifier), "--target", "android-arm64")[0] == 0
    plan = plan_build(Overrides(), tmp_path / "project")
    assert (plan.task, plan.name, plan.model) == ("text-classification", "tiny-classifier", str(tiny_classifier))


def test_an_onnx_file_with_its_data_builds_as_it_is(
    init: Init, mlp_onnx: Path, mlp_samples: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copy(mlp_onnx, project / "mlp.onnx")
    shutil.copy(mlp_samples, project / "mine.npz")
    np.savez(project / "others.npz", y=np.ones((3, 2)))
    code, out, _ = init()
    assert code == 0
    assert "mine.npz has an array for each input" in out
    assert plan_build(Overrides(), project).data.file == "mine.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        assert not edgeslim.build(folder=project).failed()


def test_an_onnx_file_without_data_says_what_is_missing(init: Init, mlp_onnx: Path, tmp_path: Path) -> None:
    shutil.copy(mlp_onnx, tmp_path / "project" / "mlp.onnx")
    code, out, _ = init("mlp.onnx")
    assert code == 0
    assert "note: a build needs data: name an .npz under [data], one array a model input: x\n" in out
    text = (tmp_path / "project" / "edgeslim.toml").read_text(encoding="utf-8")
    assert '\n# file = "samples.npz"\n' in text


def test_own_code_is_not_run(init: Init, tmp_path: Path) -> None:
    (tmp_path / "project" / "own.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    code, out, _ = init("own:make")
    assert code == 0
    assert "own code" not in out
    plan = plan_build(Overrides(), tmp_path / "project")
    assert (plan.model, plan.task) == ("own:make", None)


def test_the_folder_itself_is_the_model(init: Init, tiny_bert: Path, tmp_path: Path) -> None:
    for path in tiny_bert.iterdir():
        shutil.copy(path, tmp_path / "project")
    assert init()[0] == 0
    plan = plan_build(Overrides(), tmp_path / "project")
    assert (plan.model, plan.name) == (".", "project")


def test_names_that_say_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "Reviews v2" / "model")
    assert 'name = "reviews-v2"' in make_scaffold("Reviews v2/model", None, tmp_path).text


def test_short_models_get_a_length_that_they_take(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "short")
    config = (tmp_path / "short" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "short" / "config.json").write_text(
        config.replace('"max_position_embeddings": 128', '"max_position_embeddings": 40'), encoding="utf-8"
    )
    assert "\nmax_length = 40\n" in make_scaffold("short", None, tmp_path).text


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "dél\x7f", "new\nline", "# no comment", "{x}"])
def test_paths_with_strange_characters(mlp_onnx: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    shutil.copy(mlp_onnx, tmp_path / name / "mlp.onnx")
    assert tomllib.loads(make_scaffold(f"{name}/mlp.onnx", None, tmp_path).text)["model"] == f"{name}/mlp.onnx"


def test_a_target_of_ones_own(init: Init, mlp_onnx: Path, tmp_path: Path) -> None:
    text = 'extends = "android-arm64"\nname = "board"\n[package]\nkind = "tar"\n[budget]\nmax_drop = 0.03\n'
    (tmp_path / "project" / "board.toml").write_text(text, encoding="utf-8")
    assert init(str(mlp_onnx), "--target", "board.toml")[0] == 0
    plan = plan_build(Overrides(), tmp_path / "project")
    assert (plan.target.name, plan.budget.max_drop) == ("board", 0.03)


# What it refuses, and what it leaves alone


def test_a_project_file_stays_without_force(init: Init, tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "project" / "edgeslim.toml"
    path.write_text("seed = 3\n", encoding="utf-8")
    before = listing(tmp_path)
    code, out, err = init(str(tiny_bert))
    assert (code, out) == (3, "")
    assert err == "error: edgeslim.toml: it exists\n  expected: a folder without one\n  hint: --force replaces it\n"
    assert listing(tmp_path) == before
    assert init(str(tiny_bert), "--force")[0] == 0
    assert "seed = 3\n" not in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["edgeslim.toml"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_dangling_link_is_not_written_through(init: Init, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "project" / "edgeslim.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert init(str(tiny_bert))[0] == 3
    assert not (tmp_path / "elsewhere.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 3, "error: init: no model in "),
        (("nowhere",), 3, "error: nowhere: no such model"),
        (("broken.onnx",), 3, "not a whole ONNX model"),
        (("notes.txt",), 3, "a file ending in .txt"),
        (("empty",), 3, "a folder without config.json"),
        (("pickled",), 3, "no safetensors, only the pickle pytorch_model.bin"),
        (("odd",), 3, "not valid JSON"),
        (("m", "--target", "androd-arm64"), 2, 'did you mean "android-arm64"?'),
        (("m", "n"), 2, ""),
        (("m", "--forse"), 2, "--forse"),
    ],
)
def test_nothing_is_written_on_an_error(
    init: Init, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    folder = tmp_path / "project"
    for name in ("empty", "pickled", "odd"):
        (folder / name).mkdir()
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    if "broken.onnx" in arguments:
        (folder / "broken.onnx").write_bytes(b"\x08\x07broken")
    (folder / "pickled" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "pickled" / "pytorch_model.bin").touch()
    (folder / "odd" / "config.json").write_text("{", encoding="utf-8")
    if "odd" in arguments:
        (folder / "odd" / "model.safetensors").touch()
    before = listing(tmp_path)
    ended = init(*arguments)
    assert ended[:2] == (code, "")
    assert said in ended[2]
    assert listing(tmp_path) == before


def test_several_models(tmp_path: Path, refuses: Any) -> None:
    for number in range(10):
        (tmp_path / f"m{number}.onnx").touch()
    with refuses(BadInputError, where="init", got="m7.onnx and 2 more", hint="edgeslim init m0.onnx"):
        find_model(tmp_path)


def test_a_folder_that_cannot_be_written(init: Init, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "project" / "edgeslim.toml").mkdir()
    code, _, err = init(str(tiny_bert), "--force")
    assert code == 3
    assert "error: edgeslim.toml: a folder" in err
    assert list((tmp_path / "project" / "edgeslim.toml").iterdir()) == []


def test_unknown_target(tmp_path: Path, tiny_bert: Path, refuses: Any) -> None:
    with refuses(UsageError, where="--target", got='no target "toaster"', expected="android-arm64"):
        make_scaffold(str(tiny_bert), "toaster", tmp_path)


def test_weights_are_counted_by_their_headers(tiny_bert: Path, tmp_path: Path) -> None:
    from edgeslim.scaffold import _float_bytes

    shutil.copytree(tiny_bert, tmp_path / "m")
    whole = _float_bytes(tmp_path / "m")
    assert whole is not None
    assert abs(whole - (tiny_bert / "model.safetensors").stat().st_size) < 10_000
    for damage in (b"", b"\xff" * 8, b"\x10" + bytes(7) + b"not json at all!", b"\x02" + bytes(7) + b"[]"):
        (tmp_path / "m" / "model.safetensors").write_bytes(damage)
        assert _float_bytes(tmp_path / "m") is None
