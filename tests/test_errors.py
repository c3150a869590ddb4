from __future__ import annotations

import copy
import pickle

import pytest

from edgeslim import errors
from edgeslim.errors import (
    BadInputError,
    BudgetError,
    CheckError,
    DeviceError,
    EdgeslimError,
    MissingToolError,
    UsageError,
    near_miss,
)

CODES = {
    EdgeslimError: 1,
    UsageError: 2,
    BadInputError: 3,
    BudgetError: 4,
    MissingToolError: 5,
    CheckError: 6,
    DeviceError: 7,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_exit_codes_are_a_contract(kind: type[EdgeslimError], code: int) -> None:
    assert kind.exit_code == code
    assert kind("where", "got").exit_code == code


def test_every_kind_has_a_code_of_its_own() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdgeslimError)]
    assert set(kinds) == set(CODES)
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("expected", "hint", "text"),
    [
        ("", "", "a.toml: no key"),
        ("a key", "", "a.toml: no key\n  expected: a key"),
        ("", "write it", "a.toml: no key\n  hint: write it"),
        ("a key", "write it", "a.toml: no key\n  expected: a key\n  hint: write it"),
    ],
)
def test_message(expected: str, hint: str, text: str) -> None:
    assert str(EdgeslimError("a.toml", "no key", expected=expected, hint=hint)) == text


def test_message_without_a_place() -> None:
    assert str(EdgeslimError("", "out of patience")) == "out of patience"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", CODES)
def test_errors_cross_process_borders_whole(kind: type[EdgeslimError], again: object) -> None:
    error = kind("here", "that", expected="this", hint="try")
    back = again(error)  # type: ignore[operator]
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.where, back.got, back.expected, back.hint) == ("here", "that", "this", "try")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("methd", ("method", "percentile"), 'did you mean "method"?'),
        ("android-arm46", ["android-arm64", "ios-arm64"], 'did you mean "android-arm64"?'),
        ("zzz", ("method", "percentile"), ""),
        ("anything", (), ""),
        ("b", iter(["a", "b"]), 'did you mean "b"?'),
    ],
)
def test_near_miss(name: str, known: list[str], hint: str) -> None:
    assert near_miss(name, known) == hint
