"""What a test needs of the machine: there, or the test is skipped; in CI, which installs all of it, it fails."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*tools: str) -> None:
    """Skips the test where a program isn't installed; in CI that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail("not installed: " + ", ".join(missing))
    if missing:
        pytest.skip("not installed: " + ", ".join(missing))
