"""The sample of pictures: what it reads, what it writes, and that its two halves agree."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeslim.datasets.images import load_pixels
from edgeslim.datasets.preprocessing import PreprocessingOptions, resolve_preprocessing
from edgeslim.fields import parse_fields, read_toml

SAMPLE = Path(__file__).parent.parent / "samples" / "image-classification"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SAMPLE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("train_pictures", SAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("network", None)


def test_pictures_come_back_as_the_network_saw_them(train: ModuleType, tmp_path: Path) -> None:
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    classes = np.arange(20) % 10
    for name, magic, values in (("images-idx3", 16, pixels), ("labels-idx1", 8, classes.astype(np.uint8))):
        with gzip.open(tmp_path / f"t10k-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(magic) + values.tobytes())
    read, labels = train.read_split(tmp_path, "t10k")
    np.testing.assert_array_equal(read, pixels)
    np.testing.assert_array_equal(labels, classes)
    train.write_pictures(tmp_path / "pictures", read, labels)
    project = read_toml(SAMPLE / "edgeslim.toml")
    assert tuple(project["labels"]) == train.CLASSES
    options = parse_fields(PreprocessingOptions, project["preprocessing"], "edgeslim.toml")
    made = resolve_preprocessing(options, shape=(None, 1, 28, 28))
    table = {name: index for index, name in enumerate(project["labels"])}
    found = load_pixels(tmp_path / "pictures", made, labels=table)
    order = sorted(range(20), key=lambda row: (train.CLASSES[classes[row]], row))
    assert found.labels == tuple(int(classes[row]) for row in order)
    expected = train.normalize(torch.from_numpy(pixels[order])).numpy()
    np.testing.assert_allclose(made.normalize(found.inputs["pixels"]), expected, atol=1e-6)


def test_the_network_is_small(train: ModuleType) -> None:
    assert sum(value.numel() for value in train.Net().parameters()) < 300_000


def test_it_says_where_the_data_come_from(tmp_path: Path) -> None:
    command = [sys.executable, "-B", str(SAMPLE / "train.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr
