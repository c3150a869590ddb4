"""The text that stands in where nobody gave any."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import Example
from edgeslim.errors import BadInputError


def texts(examples: tuple[Example, ...]) -> list[str]:
    return [example.text for example in examples]


def test_builtin_text() -> None:
    examples = builtin_text(600, seed=0)
    assert len(set(texts(examples))) == 600
    assert builtin_text(600, seed=0) == examples
    assert builtin_text(50, seed=1) != examples[:50]
    lengths = [len(example.text.split()) for example in examples]
    assert min(lengths) >= 4
    assert max(lengths) <= 120
    assert np.quantile(lengths, 0.1) < 12
    assert np.quantile(lengths, 0.9) > 35
    for example in examples:
        assert example.label is None
        assert example.text == " ".join(example.text.split())
        assert re.match(r"[A-Z]", example.text)
        assert not re.search(r"::=|>>>|[|`*]", example.text)


def test_builtin_text_refuses_more_than_there_is() -> None:
    with pytest.raises(BadInputError, match="at most"):
        builtin_text(1_000_000, seed=0)
