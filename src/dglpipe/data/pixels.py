"""From stored pixels to what a network takes: pure functions on (B,H,W,C)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Normalisation:
    """Subtracts a mean and divides by a standard deviation, of pixels from 0 to 1."""

    mean: tuple[float, ...] = (0.0,)
    """One number a channel, or one for all of them."""
    std: tuple[float, ...] = (1.0,)

    def __call__(self, images: Tensor) -> Tensor:
        """(B,H,W,C) to (B,C,H,W) float32, channels last; only uint8 is normalised."""
        if images.dtype is not torch.uint8:
            return images.to(torch.float32).permute(0, 3, 1, 2)
        batch, height, width, channels = images.shape
        # Rows of W*C numbers, so that the innermost loop is longer than the few channels,
        # and in place, because fresh memory costs more than the arithmetic.
        scale, offset = _rows(self.mean, self.std, width, channels)
        rows = images.reshape(batch, height, width * channels).to(torch.float32)
        normal = rows.mul_(scale).add_(offset)
        return normal.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache
def _rows(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Factor and summand, (W*C,) each, of a row of pixels from 0 to 255."""
    means, stds = torch.tensor(mean).expand(channels), torch.tensor(std).expand(channels)
    return (1 / (255 * stds)).repeat(width), (-means / stds).repeat(width)


CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Interpolates (B,H,W,C) uint8 to (B,height,width,C) uint8, smoothed when shrinking."""
    if tuple(images.shape[1:3]) == (height, width):
        return images
    resized = interpolate(
        images.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True
    )
    return resized.permute(0, 2, 3, 1).contiguous()


def with_channels(images: Tensor, channels: int) -> Tensor:
    """(B,H,W,1) repeated to `channels`; other images as they are."""
    if images.shape[3] == channels:
        return images
    return images.expand(-1, -1, -1, channels).contiguous()


def centre(image: Tensor, size: int) -> Tensor:
    """The middle of (H,W,C) uint8 as (size,size,C), the shorter side shrunk to 8/7 of it."""
    height, width = image.shape[:2]
    shorter = round(size * 8 / 7)
    full = (shorter, int(shorter * width / height))
    if width < height:
        full = (int(shorter * height / width), shorter)
    top, left = round((full[0] - size) / 2), round((full[1] - size) / 2)
    return resize(image[None], *full)[0, top : top + size, left : left + size]
