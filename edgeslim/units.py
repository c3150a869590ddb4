"""Sizes and durations as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgeslim.errors import BadInputError

__all__ = ["parse_bytes", "parse_ms"]

_SIZE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIME_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def parse_bytes(text: str, where: str) -> int:
    """``"21.5MB"`` to bytes; kB, MB, GB are decimal, KiB, MiB, GiB binary.

    Raises:
        BadInputError: it is no size.
    """
    return round(_parse_unit(text, _SIZE_UNITS, where, "a size such as 21.5MB or 64MiB"))


def parse_ms(text: str, where: str) -> float:
    """``"40ms"`` or ``"0.04s"`` to milliseconds.

    Raises:
        BadInputError: it is no duration.
    """
    return _parse_unit(text, _TIME_UNITS, where, "a duration such as 40ms")


def _parse_unit(text: str, units: Mapping[str, float], where: str, expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].lower() not in units or float(match[1]) == 0:
        raise BadInputError(where, repr(text), expected=expected)
    return float(match[1]) * units[match[2].lower()]
