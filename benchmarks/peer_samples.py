"""Calibration samples in a file, for peers that run in environments without edgeslim: ``.npz``, keys ``ROW/INPUT``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Sample = Mapping[str, "np.ndarray[Any, Any]"]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes one feed a sample."""
    arrays = {f"{row}/{name}": value for row, sample in enumerate(samples) for name, value in sample.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_samples(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """What ``write_samples`` wrote, in its order."""
    found: dict[int, dict[str, np.ndarray[Any, Any]]] = defaultdict(dict)
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            row, name = key.split("/", 1)
            found[int(row)][name] = archive[key]
    return [found[row] for row in sorted(found)]
