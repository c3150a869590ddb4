"""The network of this sample, and what `edgeslim build` calls to get it trained (``network:load``)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
MEAN, STD = 0.286, 0.353
WEIGHTS = Path(__file__).resolve().parent / "data" / "model.safetensors"


def block(channels: int, out: int) -> nn.Sequential:
    """A depthwise and a pointwise convolution, each with its norm and ReLU (MobileNet, arXiv 1704.04861)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class Net(nn.Module):
    """Two plain convolutions, then depthwise separable ones: image float32 [B, 1, 28, 28] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            block(64, 128),
            nn.MaxPool2d(2),
            block(128, 256),
            block(256, 256),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(256, len(CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, a column for each of ``CLASSES``."""
        return self.head(self.pool(self.features(image)).flatten(1))


def load() -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, dict[int, object]]]:
    """The trained network, an example input, and the dimension that may vary: the batch."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"no {WEIGHTS.name} in {WEIGHTS.parent}: run train.py first")
    net = Net()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval(), {"image": torch.zeros(2, 1, 28, 28)}, {"image": {0: torch.export.Dim.DYNAMIC}}
