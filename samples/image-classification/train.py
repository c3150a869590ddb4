"""Trains the classifier that this sample slims: a small CNN with depthwise convolutions, on Fashion-MNIST.

The data are 28 x 28 gray pictures of clothing in ten classes: 60,000 to train with and 10,000 to test with (Xiao, Rasul
and Vollgraf 2017, arXiv 1708.07747; MIT licence). Debian and Ubuntu have them as the package dataset-fashion-mnist.
Five epochs, batches of 128, pictures shifted by up to 2 pixels and flipped, a one-cycle rate. Some minutes on two
cores. Seeds are fixed; other processors round otherwise, and so may end a few tenths of a percent apart.

Usage: ``python train.py [FOLDER]``; FOLDER holds the four ``*-ubyte.gz`` files, where the package put them if none is
given. Below ``data`` it writes ``model.safetensors``, ``calibration/CLASS/*.png`` (512 training pictures) and
``test/CLASS/*.png`` (all 10,000), and prints the accuracy on these.
"""

from __future__ import annotations

import gzip
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from network import CLASSES, MEAN, STD, Net
from PIL import Image
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION = 512
EPOCHS = 5
BATCH = 128
SEED = 0


def read_split(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, 28, 28] and their classes int64 [N], from two gzipped IDX files."""
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28).copy()
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as file:
        classes = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return pixels, classes


def write_pictures(folder: Path, pixels: np.ndarray, classes: np.ndarray) -> None:
    """One PNG a picture, in a folder for each class; ``folder`` appears when all are written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in CLASSES:
        (partial / name).mkdir(parents=True)
    for number, (picture, index) in enumerate(zip(pixels, classes, strict=True)):
        Image.fromarray(picture).save(partial / CLASSES[index] / f"{number:05}.png")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """float32 [N, 1, 28, 28] of uint8 [N, 28, 28], as edgeslim.toml says it."""
    return ((pixels.float() / 255 - MEAN) / STD)[:, None]


def vary(images: torch.Tensor) -> torch.Tensor:
    """Half of the pictures flipped, all of them shifted together by up to 2 pixels."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    down, right = torch.randint(0, 5, (2,)).tolist()
    return nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")[..., down : down + 28, right : right + 28]


def train(pixels: np.ndarray, classes: np.ndarray) -> Net:
    """The trained network, in eval mode."""
    torch.manual_seed(SEED)
    net = Net().train().to(memory_format=torch.channels_last)
    images, labels = normalize(torch.from_numpy(pixels)), torch.from_numpy(classes)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    started = time.monotonic()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            logits = net(vary(images[rows]).contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr)
    return net.eval()


@torch.no_grad()
def measure(net: Net, pixels: np.ndarray, classes: np.ndarray) -> float:
    """The share of pictures that ``net`` puts into the right class."""
    images = normalize(torch.from_numpy(pixels))
    found = torch.cat([net(part).argmax(dim=1) for part in images.split(1000)])
    return (found == torch.from_numpy(classes)).float().mean().item()


def main() -> int:
    """Reads the data, trains, and writes what the build needs."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else INSTALLED
    if not (source / "train-images-idx3-ubyte.gz").is_file():
        print(
            f"train.py: no train-images-idx3-ubyte.gz in {source}\n"
            "  hint: sudo apt-get install dataset-fashion-mnist (Debian, Ubuntu); or give the folder that holds the\n"
            "  four files of https://github.com/zalandoresearch/fashion-mnist: python train.py FOLDER",
            file=sys.stderr,
        )
        return 1
    pixels, classes = read_split(source, "train")
    test_pixels, test_classes = read_split(source, "t10k")
    folder = HERE / "data"
    write_pictures(folder / "calibration", pixels[:CALIBRATION], classes[:CALIBRATION])
    write_pictures(folder / "test", test_pixels, test_classes)
    net = train(pixels[CALIBRATION:], classes[CALIBRATION:])  # what calibrates wasn't trained on
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / ".model.partial")
    (folder / ".model.partial").rename(folder / "model.safetensors")
    size = sum(value.numel() for value in net.parameters())
    print(f"accuracy {measure(net, test_pixels, test_classes):.4f} on {len(test_pixels)} pictures, {size:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
