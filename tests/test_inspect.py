"""``edgeslim inspect`` as a person and as a build step reads it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgeslim import cli
from edgeslim.anatomy import Anatomy, dissect_model
from edgeslim.commands.inspect import print_anatomy


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeslim", "inspect", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        code = cli.run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def anatomy(tiny_bert: Path) -> Anatomy:
    return dissect_model(str(tiny_bert))


def printed(anatomy: Anatomy, *, width: int = 160, top: int = 0) -> list[str]:
    stream = io.StringIO()
    print_anatomy(anatomy, Console(file=stream, width=width), top=top)
    return stream.getvalue().splitlines()


def test_json_holds_every_tensor(edge: Callable[..., tuple[int, str, str]], tiny_bert: Path) -> None:
    from safetensors.numpy import load_file

    truth = load_file(tiny_bert / "model.safetensors")
    code, out, err = edge(str(tiny_bert), "--json")
    assert (code, err) == (0, "")
    plain = json.loads(out)
    assert (plain["schema"], plain["kind"], plain["model"]) == (1, "safetensors", str(tiny_bert))
    assert {row["name"]: row["stored_bytes"] for row in plain["tensors"]} == {
        name: array.nbytes for name, array in truth.items()
    }
    keys = {"name", "layer", "block", "group", "dtype", "shape", "parameters", "stored_bytes", "runtime_bytes", "bits"}
    keys |= {"entropy_bits", "zeros", "sparsity", "distinct", "alphabet"}
    assert set(plain["tensors"][0]) == keys
    assert plain["total"]["parameters"] == sum(array.size for array in truth.values())


def test_top_shortens_table_and_json(edge: Callable[..., tuple[int, str, str]], tiny_bert: Path) -> None:
    _, out, _ = edge(str(tiny_bert), "--json", "--top", "3")
    plain = json.loads(out)
    assert len(plain["tensors"]) == 3
    assert plain["total"]["tensors"] > 3
    code, out, _ = edge(str(tiny_bert), "--top", "2")
    left = plain["total"]["stored_bytes"] - sum(row["stored_bytes"] for row in plain["tensors"][:2])
    assert code == 0
    assert f"… and {plain['total']['tensors'] - 2} more tensors with {left / 1e3:.2f} kB" in out


def test_the_table_says_what_the_json_says(anatomy: Anatomy) -> None:
    lines = printed(anatomy)
    assert f"{anatomy.total.parameters:,} parameters in {anatomy.total.tensors} tensors" in lines[0]
    for row in anatomy.tensors:
        (line,) = (line for line in lines if line.startswith(f"{row.name} "))
        assert f"{row.dtype} {'×'.join(map(str, row.shape))}" in line
        assert f"{row.bits:.2f}" in line
        assert line.rstrip().endswith(f"{row.stored_bytes / anatomy.total.stored_bytes:.1%}")
    shares = [float(line.split()[-1].rstrip("%")) for line in lines if line.startswith(("embed", "attention ", "ffn "))]
    assert np.all(np.array(shares) > 0)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_figures(anatomy: Anatomy, width: int) -> None:
    lines = printed(anatomy, width=width)
    assert max(map(len, lines)) <= width
    total = next(line for line in lines if line.startswith("all "))
    assert f"{anatomy.total.parameters:,}" in total
    assert f"{anatomy.total.bits:.2f}" in total
    start = next(index for index, line in enumerate(lines) if line.startswith("tensor "))
    for row, line in zip(anatomy.tensors, lines[start + 1 :], strict=False):
        assert f"{row.bits:.2f}" in line
        assert line[0] == row.name[0]
    assert ("distinct" in lines[start]) == (width >= 120)


def test_names_cannot_paint_the_terminal(anatomy: Anatomy) -> None:
    evil = replace(anatomy.tensors[0], name="[red]a\x1b[2Jb\u202ec[/red]")
    lines = printed(replace(anatomy, model="[bold]m", tensors=(evil,)))
    assert lines[0].startswith("[bold]m: ")
    text = "\n".join(lines)
    assert "[red]a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c[/red]" in text
    assert "\x1b" not in text


def test_a_name_that_says_nothing_comes_after_its_layer(anatomy: Anatomy) -> None:
    bare = replace(anatomy.tensors[0], name="onnx::MatMul_12")
    assert any(
        line.startswith(f"{bare.layer} (onnx::MatMul_12) ") for line in printed(replace(anatomy, tensors=(bare,)))
    )


def test_a_model_without_tensors(anatomy: Anatomy) -> None:
    assert any(line.startswith("tensor ") for line in printed(replace(anatomy, tensors=())))


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [(None, 3, "no such model"), (b"", 3, "without nodes"), (b"\xff" * 40, 3, "not a whole ONNX model")],
)
def test_bad_input_ends_with_its_code(
    edge: Callable[..., tuple[int, str, str]], tmp_path: Path, content: bytes | None, code: int, said: str
) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    ended, out, err = edge(str(tmp_path / "m.onnx"))
    assert (ended, out) == (code, "")
    assert said in err
    assert "expected: " in err
