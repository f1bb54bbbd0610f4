"""A network, a head, a loss and a data set from outside the package.

    dglpipe train --config-dir examples/plugin/conf model=shapes head=shapes data=shapes

A builder receives the arguments from its configuration. dglpipe fills in the following arguments if
the signature names them: `channels`, `classes`, `image_size` (network), `channels`, `side`,
`classes` (head), `seed` (data).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def network(channels: int, classes: int, width: int = 16) -> nn.Module:
    """Images (B, channels, H, W) -> logits (B, classes); any module that torch.fx can trace.

    Four segments: a cut is possible before every convolution except the first.
    """
    widths = [channels, width, width, 2 * width, 2 * width]
    layers = [_layer(widths[i], widths[i + 1], stride=1 + (i == 2)) for i in range(4)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes)
    )


def _layer(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(inplace=True),
    )


def head(channels: int, classes: int, hidden: int = 32) -> nn.Module:
    """Features (B, channels, H, W) -> logits (B, classes)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def loss(margin: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits (B, N) and labels (B,) -> the mean over the batch."""
    return nn.MultiMarginLoss(margin=margin)


@dataclass
class Shapes:
    """Gray images (n, 1, 16, 16) of uint8 and labels (n,), for training and for testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...] = ("square", "disc", "cross")


def data(seed: int, samples: int = 768, noise: float = 40.0) -> Shapes:
    """Shapes of random position and size, determined by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return Shapes(_draw(samples, noise, generator), _draw(samples // 4, noise, generator))


def _draw(samples: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(samples) % 3
    place = torch.rand(samples, 2, 1, 1, generator=generator) * 4 + 5.5
    size = torch.rand(samples, 1, 1, generator=generator) * 2 + 3
    grid = torch.arange(16.0)
    down, across = (grid[:, None] - place[:, 0]).abs(), (grid - place[:, 1]).abs()
    square = torch.maximum(down, across) <= size
    disc = down**2 + across**2 <= size**2
    cross = square & (torch.minimum(down, across) <= 1)
    shapes = torch.stack((square, disc, cross), dim=1)[torch.arange(samples), labels]
    images = shapes * 200 + torch.randn(samples, 16, 16, generator=generator) * noise
    return images.clamp(0, 255).to(torch.uint8)[:, None], labels
