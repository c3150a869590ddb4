from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from edgeslim.errors import BadInputError
from edgeslim.fields import MAX_TOML_BYTES, parse_fields, read_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    name: str
    level: ClassVar[str] = "none"
    on: bool = False
    count: int = 0
    ratio: float = 0.5
    kind: Literal["left", "right"] = "left"
    bits: Literal[4, 8] = 8
    limit: float | None = None
    names: tuple[str, ...] = ()
    tables: tuple[Mapping[str, Any], ...] = ()
    by_name: Mapping[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    anything: Any = None
    derived: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count: {self.count}, expected 0 or more")
        if self.ratio == 13:
            raise ValueError("an unlucky ratio")


def test_defaults_come_from_the_dataclass() -> None:
    assert parse_fields(Sample, {"name": "x"}, "f") == Sample(name="x")


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("on", True, True),
        ("count", 3, 3),
        ("ratio", 0.25, 0.25),
        ("ratio", 2, 2.0),
        ("kind", "right", "right"),
        ("bits", 4, 4),
        ("limit", 1, 1.0),
        ("names", ["a", "b"], ("a", "b")),
        ("names", [], ()),
        ("tables", [{"use": "x", "deep": {"y": 1}}], ({"use": "x", "deep": {"y": 1}},)),
        ("by_name", {"a": 1}, {"a": 1}),
        ("inner", {"depth": 4}, Inner(depth=4)),
        ("inner", {}, Inner()),
        ("anything", ["kept", 1], ["kept", 1]),
    ],
)
def test_values(key: str, value: object, parsed: object) -> None:
    found = getattr(parse_fields(Sample, {"name": "x", key: value}, "f"), key)
    assert found == parsed
    assert type(found) is type(parsed)


@pytest.mark.parametrize(
    ("table", "where", "got", "expected", "hint"),
    [
        ({}, "f", 'no key "name"', "a string", ""),
        ({"name": "x", "rato": 1}, "f", 'unknown key "rato"', "ratio", 'did you mean "ratio"?'),
        ({"name": "x", "level": "y"}, "f", 'unknown key "level"', "name", ""),
        ({"name": "x", "derived": 1}, "f", 'unknown key "derived"', "name", ""),
        ({"name": 3}, "f: name", "3 (int)", "a string", ""),
        ({"name": "x", "on": 1}, "f: on", "1 (int)", "true or false", ""),
        ({"name": "x", "count": True}, "f: count", "True (bool)", "a whole number", ""),
        ({"name": "x", "count": 1.0}, "f: count", "1.0 (float)", "a whole number", ""),
        ({"name": "x", "ratio": "1"}, "f: ratio", "'1' (str)", "a number", ""),
        ({"name": "x", "ratio": False}, "f: ratio", "False (bool)", "a number", ""),
        ({"name": "x", "kind": "rihgt"}, "f: kind", "'rihgt'", "one of 'left', 'right'", 'did you mean "right"?'),
        ({"name": "x", "kind": ["left"]}, "f: kind", "['left']", "one of 'left', 'right'", ""),
        ({"name": "x", "bits": 5}, "f: bits", "5", "one of 4, 8", ""),
        ({"name": "x", "limit": "no"}, "f: limit", "'no' (str)", "a number", ""),
        ({"name": "x", "names": "a"}, "f: names", "'a' (str)", "a list of a string", ""),
        ({"name": "x", "names": ["a", 2]}, "f: names[1]", "2 (int)", "a string", ""),
        ({"name": "x", "by_name": {"a": "b"}}, "f: by_name.a", "'b' (str)", "a whole number", ""),
        ({"name": "x", "by_name": []}, "f: by_name", "[] (list)", "a table", ""),
        ({"name": "x", "inner": 1}, "f: inner", "1 (int)", "a table", ""),
        ({"name": "x", "inner": {"dept": 1}}, "f: inner", 'unknown key "dept"', "depth", 'did you mean "depth"?'),
        ({"name": "x", "count": -1}, "f", "count: -1", "0 or more", ""),
    ],
)
def test_refusals(table: dict[str, Any], where: str, got: str, expected: str, hint: str, refuses: Any) -> None:
    with refuses(BadInputError, where=where, got=got, expected=expected, hint=hint):
        parse_fields(Sample, table, "f")


def test_a_refusal_by_the_dataclass_itself_is_passed_on() -> None:
    with pytest.raises(BadInputError, match="f: an unlucky ratio"):
        parse_fields(Sample, {"name": "x", "ratio": 13}, "f")


def test_a_dataclass_without_fields() -> None:
    @dataclass(frozen=True)
    class Empty:
        pass

    assert parse_fields(Empty, {}, "f") == Empty()
    with pytest.raises(BadInputError, match="no keys"):
        parse_fields(Empty, {"a": 1}, "f")


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "ä"\n[inner]\ndepth = 2\n', encoding="utf-8")
    assert read_toml(path) == {"name": "ä", "inner": {"depth": 2}}


@pytest.mark.parametrize(
    ("content", "got", "expected"),
    [
        (None, "No such file", "a readable TOML file"),
        (b"name = 'a'\nname = 'b'\n", "not valid TOML: Cannot overwrite a value (at line 2", "TOML"),
        (b"a = [1,\n", "not valid TOML", "TOML"),
        (b"a = '\xff\xfe'", "byte 5 is not UTF-8", "UTF-8"),
        (b"# " + b"x" * MAX_TOML_BYTES, f"{MAX_TOML_BYTES + 2:,} bytes", "at most 1,048,576 bytes"),
    ],
    ids=["missing", "twice", "cut", "bytes", "large"],
)
def test_read_toml_refusals(tmp_path: Path, content: bytes | None, got: str, expected: str, refuses: Any) -> None:
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with refuses(BadInputError, where=str(path), got=got, expected=expected):
        read_toml(path)


def test_read_toml_of_a_folder(tmp_path: Path, refuses: Any) -> None:
    with refuses(BadInputError, where=str(tmp_path), got="Is a directory", expected="a readable TOML file"):
        read_toml(tmp_path)
