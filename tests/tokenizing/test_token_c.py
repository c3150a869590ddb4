"""The C tokenizer against Hugging Face's, under sanitizers."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from token_cases import (
    ADDED,
    BPE_KINDS,
    STEPS,
    Case,
    bytes_of,
    expected_ids,
    frame_texts,
    make_bpe,
    make_letters,
    make_minilm,
    make_smollm2,
)
from tokenizers import Tokenizer

from edgeslim.runtime import C_DIR
from tests.needs import need

HERE = Path(__file__).parent
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror")
OK, FORMAT, ROOM, MEMORY, ID = range(5)
PLAIN, LITERAL = 1, 2
Run = Callable[..., list[str]]


def compile_c(output: Path, *arguments: str | Path, compiler: str = "gcc") -> Path:
    command = [compiler, *FLAGS, "-I", str(C_DIR), *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sanitizers = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    output = tmp_path_factory.mktemp("token") / "asan"
    return compile_c(output, *sanitizers, HERE / "harness_token.c", C_DIR / "esz_token.c")


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    def run(packed: bytes, *arguments: object, stdin: bytes = b"") -> list[str]:
        (tmp_path / "tokenizer.etk").write_bytes(packed)
        command = [program, tmp_path / "tokenizer.etk", *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()

    return run


def compare(run: Run, case: Case, raw: Sequence[bytes]) -> None:
    lines = run(case.packed, "encode", 0, 20_000, stdin=frame_texts(raw))
    assert len(lines) == len(raw)
    for line, one, ids in zip(lines, raw, expected_ids(case.reference, raw), strict=True):
        assert line == " ".join(map(str, (OK, 0, *ids))), one


def test_ten_thousand_texts_as_wordpiece(run: Run) -> None:
    compare(run, make_minilm(), bytes_of(10_000))


@pytest.mark.parametrize("steps", STEPS)
def test_normalization_letter_by_letter(run: Run, steps: str) -> None:
    compare(run, make_letters(steps), bytes_of(2500))


@pytest.mark.parametrize("kind", BPE_KINDS)
def test_byte_level_bpe(run: Run, kind: str) -> None:
    compare(run, make_bpe(kind), bytes_of(10_000 if kind == "digits" else 2500))


@pytest.mark.slow
def test_ten_thousand_texts_as_smollm2(run: Run) -> None:
    case = make_smollm2()
    compare(run, case, bytes_of(10_000))
    check_text(run, case, skip=True)


@pytest.mark.parametrize("room", [2, 3, 7, 16])
@pytest.mark.parametrize("make", [make_minilm, lambda: make_bpe("plain")])
def test_long_texts_are_cut(run: Run, make: Callable[[], Case], room: int) -> None:
    case, raw = make(), bytes_of(2500)[:400]
    whole = expected_ids(case.reference, raw)
    reference = Tokenizer.from_str(case.reference.to_str())
    reference.enable_truncation(room)
    lines = run(case.packed, "encode", 0, room, stdin=frame_texts(raw))
    for line, ids, all_ids in zip(lines, expected_ids(reference, raw), whole, strict=True):
        assert line == " ".join(map(str, (OK, int(len(all_ids) > room), *ids)))


def test_no_room_for_the_frame(run: Run) -> None:
    assert run(make_minilm().packed, "encode", 0, 1, stdin=frame_texts([b"a"])) == [f"{ROOM} 0"]
    assert run(make_minilm().packed, "encode", PLAIN, 0, stdin=frame_texts([b"a", b""])) == [f"{OK} 1", f"{OK} 0"]


@pytest.mark.parametrize("make", [make_minilm, lambda: make_bpe("plain")])
def test_special_tokens_as_plain_text(run: Run, make: Callable[[], Case]) -> None:
    case = make()
    raw = [text.encode() for text in ("a [SEP] b[MASK]", f"x{ADDED[2]}y {ADDED[0]}", "[SEP", "<|im_end")]
    reference = Tokenizer.from_str(case.reference.to_str())
    reference.encode_special_tokens = True
    lines = run(case.packed, "encode", LITERAL | PLAIN, 100, stdin=frame_texts(raw))
    for line, text in zip(lines, raw, strict=True):
        ids = reference.encode(text.decode(), add_special_tokens=False).ids
        assert line == " ".join(map(str, (OK, 0, *ids)))
    assert lines != run(case.packed, "encode", PLAIN, 100, stdin=frame_texts(raw))


def frame_lists(lists: Sequence[Sequence[int]]) -> bytes:
    return b"".join(struct.pack(f"<I{len(ids)}I", len(ids), *ids) for ids in lists)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make", [lambda: make_bpe("plain"), lambda: make_bpe("digits")])
def test_back_to_text(run: Run, make: Callable[[], Case], *, skip: bool) -> None:
    check_text(run, make(), skip=skip)


def check_text(run: Run, case: Case, *, skip: bool) -> None:
    draw = random.Random(5)
    lists = [ids for ids in expected_ids(case.reference, bytes_of(2500)[:500]) if ids]
    lists += [draw.choices(range(case.reference.get_vocab_size()), k=20) for _ in range(300)]
    lines = run(case.packed, "decode", int(skip), stdin=frame_lists(lists))
    for line, ids in zip(lines, lists, strict=True):
        status, text = line.split(" ")
        assert status == str(OK)
        assert bytes.fromhex(text).decode("utf-8", "replace") == case.reference.decode(ids, skip_special_tokens=skip)


def test_ids_that_are_none(run: Run) -> None:
    assert run(make_bpe("plain").packed, "decode", 0, stdin=frame_lists([[5, 3000], [2**31]])) == [f"{ID} "] * 2
    assert run(make_minilm().packed, "decode", 0, stdin=frame_lists([[5]])) == [f"{ID} "]


@pytest.mark.parametrize("make", [make_minilm, lambda: make_bpe("digits"), lambda: make_letters("uncased")])
def test_hostile_files_do_no_harm(run: Run, make: Callable[[], Case]) -> None:
    packed = make().packed
    (opened,) = run(packed, "fuzz", 400)
    assert int(opened) < 250  # half of the damage hits the header
    for size in (0, 1, 127, 128, len(packed) - 4):
        assert run(packed[:size], "encode", 0, 9, stdin=b"") == ["format"]
    assert run(packed + bytes(4), "encode", 0, 9, stdin=b"") == ["format"]


def test_every_number_of_the_header_is_checked(run: Run) -> None:
    packed = make_minilm().packed
    for place in range(32):
        for value in (0xFFFFFFFF, 0x7FFFFFFF):
            damaged = bytearray(packed)
            struct.pack_into("<I", damaged, 4 * place, value)
            if place in (4, 6) and value == 0xFFFFFFFF:
                continue  # no padding token is fine; the unknown one is asked for below
            if bytes(damaged) != packed:
                assert run(bytes(damaged), "encode", 0, 9, stdin=b"") == ["format"], place


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"])
def test_no_warning(compiler: str, tmp_path: Path) -> None:
    need(compiler)
    compile_c(tmp_path / "out.o", "-O2", "-c", C_DIR / "esz_token.c", compiler=compiler)
