"""What a build reads, what of it makes which step run again, and what is left alone if nothing changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim import export, final_checks, inputs, pipeline
from edgeslim.cache import Cache
from edgeslim.core import Quiet, Report
from edgeslim.errors import BadInputError
from edgeslim.inputs import build_inputs, hash_model, input_files, why_changed, write_depfile
from edgeslim.project import Overrides, plan_build
from edgeslim.source import resolve_source

PROJECT = """\
model = "mlp.onnx"
target = "board.toml"
out = "made"
recipe = "recipe.toml"

[data]
file = "data.npz"

[budget]
max_size = "1MB"
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n'
RECIPE = '[[steps]]\nuse = "quantize_int8"\n'
STEPS = ("export", "quantize_int8", "encode", "package")


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with all that a build reads, and a cache of its own."""

    folder: Path
    cache: Cache

    def build(self, **options: Any) -> Report:
        return edgeslim.build(folder=self.folder, **options)

    def ran(self, **options: Any) -> set[str]:
        """The steps that a build ran; ``nothing`` where it didn't even look at them."""
        told: set[str] = set()

        class Telling(Quiet):
            def step(self, what: str) -> None:
                told.add("nothing" if what.startswith("nothing") else what)

        self.build(progress=Telling(), **options)
        return {what for what in told if "(unchanged)" not in what}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def output(self) -> dict[str, tuple[int, int, bytes]]:
        """Each file of the output with its inode, time and bytes."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
            for path in (self.folder / "made").rglob("*")
            if path.is_file()
        }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No latencies: they take long, and none of these tests looks at them."""
    monkeypatch.setattr(final_checks, "check_latency", lambda *arguments, **options: iter(()))


@pytest.fixture
def project(tmp_path: Path, mlp_onnx: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Project:
    folder = tmp_path / "build"
    folder.mkdir()
    shutil.copy(mlp_onnx, folder / "mlp.onnx")
    save_data(folder / "data.npz", seed=9)
    for name, text in (("edgeslim.toml", PROJECT), ("board.toml", BOARD), ("recipe.toml", RECIPE)):
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Project(folder=folder, cache=Cache(tmp_path / "cache"))


@pytest.fixture
def built(project: Project) -> Project:
    assert project.ran() == {*STEPS, "checks"}
    return project


def save_data(path: Path, *, seed: int) -> None:
    np.savez(path, x=np.random.default_rng(seed).normal(0, 1, (40, 16)).astype(np.float32))


# Nothing changed


def test_an_unchanged_build_runs_nothing_and_touches_nothing(built: Project) -> None:
    first, before = built.build(), built.output()
    assert {"made/mlp.aar", "made/report.json"} < set(before)
    assert built.ran() == {"nothing"}
    assert built.output() == before
    assert built.build() == first
    assert json.loads(before["made/report.json"][2]) == json.loads(first.to_json())


def test_touched_files_and_copies_of_them_change_nothing(built: Project, tmp_path: Path) -> None:
    for path in built.folder.iterdir():
        if path.is_file():
            os.utime(path, (1, 1))
            shutil.copy(path, tmp_path / "copy")
            (tmp_path / "copy").replace(path)
    assert built.ran() == {"nothing"}


def test_the_report_names_the_package_from_where_one_stands(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.folder)
    report = edgeslim.build()
    assert report.artifact.path == "made/mlp.aar"
    assert Path(report.artifact.path).is_file()


def test_an_unchanged_build_removes_what_a_killed_one_left(built: Project) -> None:
    """The kill came after the last rename: all is known, and only the scratch folder wasn't removed any more."""
    left = (built.folder / ".edgeslim-build-abcd_123", built.cache.root / ".new-abcd_123")
    for folder in left:
        (folder / "deep").mkdir(parents=True)
    assert built.ran() == {"nothing"}
    assert not [folder for folder in left if folder.exists()]


def test_without_the_cache_all_runs(built: Project) -> None:
    assert built.ran(use_cache=False) == {*STEPS, "checks"}


# Something changed: (how, which steps run again besides the checks)

Change = Callable[[Project], object]
CHANGES: dict[str, tuple[Change, set[str]]] = {
    "budget": (lambda p: p.edit("edgeslim.toml", "1MB", "2MB"), set()),
    "drop": (lambda p: p.edit("edgeslim.toml", "[budget]", "[budget]\nmax_drop = 0.5"), set()),
    "comment": (lambda p: p.edit("recipe.toml", "[[steps]]", "# mine\n[[steps]]"), set()),
    "stage": (
        lambda p: p.edit("recipe.toml", "int8\"", "int8\"\nform = \"qdq\""),
        {"quantize_int8", "encode", "package"},
    ),
    "stage without effect": (
        lambda p: p.edit("recipe.toml", "int8\"", "int8\"\nembeddings = false"),
        {"quantize_int8", "package"},
    ),
    "no stage": (lambda p: (p.folder / "recipe.toml").write_text("steps = []\n"), {"encode", "package"}),
    "version": (lambda p: p.edit("edgeslim.toml", "[data]", "[android]\nversion = \"2.0.0\"\n[data]"), {"package"}),
    "name": (lambda p: p.edit("edgeslim.toml", "out =", "name = \"net\"\nout ="), {"package"}),
    "target's package": (
        lambda p: (p.folder / "board.toml").write_text(BOARD + "[package]\nkind = \"tar\"\n"),
        {"package"},
    ),
    "target's machine": (
        lambda p: (p.folder / "board.toml").write_text(BOARD + "[machine]\nisa = \"riscv64\"\n"),
        {"quantize_int8", "package"},
    ),
    "data": (lambda p: save_data(p.folder / "data.npz", seed=10), set(STEPS)),
    "seed": (lambda p: p.edit("edgeslim.toml", "out =", "seed = 4\nout ="), set(STEPS)),
    "model": (lambda p: other_weights(p.folder / "mlp.onnx"), set(STEPS)),
    "licence": (lambda p: (p.folder / "LICENSE").write_text("Free.\n"), {"export", "package"}),
    "output deleted": (lambda p: shutil.rmtree(p.folder / "made"), set()),
    "package edited": (lambda p: (p.folder / "made" / "mlp.aar").write_bytes(b"edited"), set()),
    "report deleted": (lambda p: (p.folder / "made" / "report.json").unlink(), set()),
}  # fmt: skip


def other_weights(path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    first = model.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1.5), first.name))
    onnx.save(model, path)


@pytest.mark.parametrize(("change", "again"), CHANGES.values(), ids=CHANGES)
def test_what_runs_again(built: Project, change: Change, again: set[str]) -> None:
    before = built.output()
    change(built)
    assert built.ran() == {*again, "checks"}
    after = built.output()
    if not again:
        assert after["made/mlp.aar"][2] == before["made/mlp.aar"][2]
    assert built.ran() == {"nothing"}, "the second time, that is what is known"


@pytest.mark.parametrize("name", ["onnx", "coder"])
def test_versions_are_inputs(built: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(inputs.versions())
    for module in (inputs, pipeline):
        monkeypatch.setattr(module, "versions", lambda: found | {name: "another"})
    assert built.ran() == {*STEPS, "checks"}


def test_another_folder_shares_the_steps(built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(built.folder, tmp_path / "other", ignore=shutil.ignore_patterns("made"))
    other = Project(folder=tmp_path / "other", cache=built.cache)
    assert other.ran() == {"checks"}
    assert other.output()["made/mlp.aar"][2] == built.output()["made/mlp.aar"][2]


def test_own_code_always_runs(
    project: Project, own_module: Path, mlp_samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(own_module / "own_net.py", project.folder)
    cases = (("own_net:make_dynamic", None, {"export"}), ("mlp.onnx", "own_net:relative_error", set()))
    for model, task, again in cases:
        head = f'model = "{model}"\n' + (f'task = "{task}"\n' if task else "")
        text = PROJECT.replace('model = "mlp.onnx"\n', head) + "max_drop = 0.5\n"
        (project.folder / "edgeslim.toml").write_text(text, encoding="utf-8")
        project.build()
        ran = project.ran()
        assert "checks" in ran
        assert ran & set(STEPS) == again
        plan = plan_build(Overrides(), project.folder)
        assert why_changed(plan, project.cache) == ("own code may depend on anything: it always runs",)


def test_a_failed_build_is_not_remembered(project: Project) -> None:
    project.edit("edgeslim.toml", "1MB", "1kB")
    for _ in range(2):
        assert project.build().failed()
    assert not (project.folder / "made").exists()
    project.edit("edgeslim.toml", "1kB", "1MB")
    assert project.ran() == {"checks"}


def test_inputs_that_change_during_the_build_are_not_remembered(project: Project) -> None:
    class Meddling(Quiet):
        def step(self, what: str) -> None:
            if what == "checks":
                project.edit("board.toml", "a board", "another board")

    project.build(progress=Meddling())
    assert project.ran() == {"checks"}


def test_a_model_that_changes_while_it_is_read(project: Project, monkeypatch: pytest.MonkeyPatch, refuses: Any) -> None:
    real = export.import_onnx

    def meddling(path: Path, *arguments: Any, **options: Any) -> Any:
        made = real(path, *arguments, **options)
        other_weights(path)
        return made

    monkeypatch.setattr(export, "import_onnx", meddling)
    with refuses(BadInputError, where="mlp.onnx", got="changed while it was being read", expected="stay as they are"):
        project.build()
    assert project.cache.entries() == ()


def test_an_unusable_cache_changes_nothing(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert project.ran() == {*STEPS, "checks"}


def test_a_corrupt_step_is_made_again(built: Project) -> None:
    before = built.output()
    for entry in built.cache.entries():
        if entry.step == "quantize_int8":
            weights = built.cache.root / entry.key / "files" / "weights.bin"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    shutil.rmtree(built.folder / "made")
    assert built.ran() == {"quantize_int8", "checks"}
    assert built.output()["made/mlp.aar"][2] == before["made/mlp.aar"][2]


# Which files those are


def names(paths: Any) -> list[str]:
    return [path.name for path in paths]


def test_the_files_of_an_onnx_model(project: Project, mlp_external: Path) -> None:
    for file in mlp_external.parent.iterdir():
        shutil.copy(file, project.folder)
    (project.folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    project.edit("edgeslim.toml", "mlp.onnx", "mlp-external.onnx")
    plan = plan_build(Overrides(), project.folder)
    found = input_files(plan, resolve_source(plan.model, base=plan.base))
    assert sorted(names(found)) == sorted(
        [
            *("README.md", "board.toml", "data.npz", "edgeslim.toml", "mlp-external.onnx", "mlp.data", "recipe.toml"),
            "android-arm64.toml",
        ]
    )
    assert set(hash_model(resolve_source(plan.model, base=plan.base))) == {"README.md", "mlp-external.onnx", "mlp.data"}


def test_the_files_of_a_hugging_face_folder(tiny_bert: Path, text_files: Any) -> None:
    plan = plan_build(Overrides(model=str(tiny_bert), target="android-arm64", data=str(text_files.txt)))
    found = names(input_files(plan, resolve_source(plan.model)))
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md", "texts.txt"} <= set(found)
    assert {"android-arm64.toml"} <= set(found)


def test_a_folder_of_samples_counts_with_all_in_it(project: Project) -> None:
    (project.folder / "pictures" / "cat").mkdir(parents=True)
    (project.folder / "pictures" / "cat" / "1.png").touch()
    project.edit("edgeslim.toml", "data.npz", "pictures")
    plan = plan_build(Overrides(), project.folder)
    assert "1.png" in names(input_files(plan, resolve_source(plan.model, base=plan.base)))


def test_external_data_of_subgraphs_counts_and_what_leaves_the_folder_does_not(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save_model

    def outside(name: str, location: str) -> TensorProto:
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [0], [])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (tmp_path / "model" / location).write_bytes(b"x")
        return tensor

    (tmp_path / "model").mkdir()
    inner = helper.make_graph([], "inner", [], [], [outside("a", "inner.data")])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["k"], value=outside("b", "constant.data")),
    ]
    graph = helper.make_graph(
        nodes, "outer", [], [], [outside("d", "../above.data"), outside("e", str(tmp_path / "x"))]
    )
    path = tmp_path / "model" / "net.onnx"
    save_model(helper.make_model(graph), path)
    assert names(inputs._external_files(path)) == ["constant.data", "inner.data"]


# Why, and depfiles


def test_why(built: Project) -> None:
    def reasons() -> tuple[str, ...]:
        return why_changed(plan_build(Overrides(), built.folder), built.cache)

    assert reasons() == ()
    built.edit("edgeslim.toml", "1MB", "2MB")
    save_data(built.folder / "data.npz", seed=10)
    (built.folder / "LICENSE").write_text("Free.\n", encoding="utf-8")
    folder = built.folder.absolute()
    assert reasons() == (
        f"{folder / 'LICENSE'} is new",
        f"{folder / 'data.npz'} changed",
        f"{folder / 'edgeslim.toml'} changed",
        "the setting budget changed",
    )
    built.cache.clear()
    assert reasons() == (f"no earlier build into {built.folder / 'made'} is known",)


def test_what_a_build_depends_on_is_plain_json(project: Project) -> None:
    found = build_inputs(plan_build(Overrides(), project.folder))
    assert found is not None
    assert set(found) == {"files", "settings", "versions"}
    assert json.loads(json.dumps(found))["files"] == found["files"]


def test_depfiles_list_the_profiles_that_a_profile_extends(project: Project) -> None:
    (project.folder / "base.toml").write_text(BOARD, encoding="utf-8")
    (project.folder / "board.toml").write_text('extends = "base.toml"\nname = "special"\n', encoding="utf-8")
    plan = plan_build(Overrides(), project.folder)
    found = names(input_files(plan, resolve_source(plan.model, base=plan.base)))
    assert {"base.toml", "board.toml", "android-arm64.toml"} <= set(found)


def test_depfiles_escape_what_make_would_read_otherwise(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "a b#c$d:e"
    project.folder.rename(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_depfile(folder / "x.d", "made/my net.aar", Overrides())
    first, *rest = (folder / "x.d").read_text(encoding="utf-8").split("\n\n")
    prefix = str(tmp_path) + "/a\\ b\\#c$$d\\:e/"
    listed = [f"{prefix}{name}" for name in ("board.toml", "data.npz", "edgeslim.toml", "mlp.onnx", "recipe.toml")]
    target, *found = [line.strip() for line in first.split(" \\\n")]
    target, _, head = target.partition(": ")
    assert target == "made/my\\ net.aar"
    assert set(listed) < {head, *found}
    assert [line.rstrip("\n") for line in rest] == [f"{name}:" for name in (head, *found)]


def test_depfiles_list_own_modules_that_were_loaded(
    own_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_module / "inner").mkdir()
    (own_module / "inner" / "__init__.py").touch()
    (own_module / "own_net.py").write_text("import inner\ndef make(): ...\n", encoding="utf-8")
    monkeypatch.chdir(own_module)
    monkeypatch.syspath_prepend(str(own_module))
    import own_net  # type: ignore[import-not-found]  # noqa: F401

    try:
        write_depfile(tmp_path / "x.d", "x.tar.gz", Overrides(model="own_net:make", target="android-arm64"))
    finally:
        import sys

        sys.modules.pop("inner", None)
    text = (tmp_path / "x.d").read_text(encoding="utf-8")
    assert "own_net.py" in text
    assert "inner/__init__.py" in text


def test_a_depfile_that_cannot_be_written(project: Project, refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    (project.folder / "taken").mkdir()
    before = sorted(project.folder.rglob("*"))
    for name in ("gone/x.d", "taken"):
        with refuses(BadInputError, where="--depfile", got=f"can't write {name}", expected="a writable file"):
            write_depfile(Path(name), "x", Overrides())
    assert sorted(project.folder.rglob("*")) == before
