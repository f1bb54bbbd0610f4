"""Augmentation of whole batches: pure functions of images and random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

CROP_DRAWS = 3
"""Random numbers that `crop_and_flip` needs an image."""


def crop_and_flip(images: Tensor, draws: Tensor, padding: int = 4) -> Tensor:
    """Shifts each image by up to `padding` pixels, black coming in, and mirrors half of them.

    Args:
        images: (B,H,W,C) uint8 or float32.
        draws: (B,3) in [0, 1): top, left, mirrored if below 1/2.

    Returns:
        (B,H,W,C), contiguous, of the type of `images`.
    """
    batch, height, width, channels = images.shape
    top, left = (draws[:, :2] * (2 * padding + 1)).to(torch.int64).unbind(1)
    padded = pad(images, (0, 0, padding, padding, padding, padding))
    full_height, full_width = height + 2 * padding, width + 2 * padding
    # A row of an image is W*C neighbouring numbers, whatever pixel it begins at: one
    # gather of such windows is several times as fast as indexing single pixels.
    windows = padded.flatten().unfold(0, width * channels, channels)
    first = (torch.arange(batch) * full_height + top) * full_width + left
    starts = first[:, None] + torch.arange(height) * full_width
    cropped = windows.index_select(0, starts.flatten()).view(batch, height, width, channels)
    mirrored = (draws[:, 2] < 0.5).nonzero().squeeze(1)
    return cropped.index_copy_(0, mirrored, cropped.index_select(0, mirrored).flip(2))


BOX_DRAWS = 22
"""Random numbers that `random_box` needs: ten tries of two, and the place."""


def random_box(height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
    """The part of an image that RandomResizedCrop would take.

    It covers 8 to 100 % of the area, with sides in a ratio of 3:4 to 4:3; if ten tries
    do not fit into the image, the largest such part at the centre is taken.

    Args:
        draws: 22 numbers in [0, 1).

    Returns:
        top, left, height and width in pixels.
    """
    for attempt in range(10):
        area = height * width * (0.08 + 0.92 * draws[2 * attempt])
        ratio = (3 / 4) ** (1 - 2 * draws[2 * attempt + 1])
        box_height, box_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(draws[20] * (height - box_height + 1))
            left = int(draws[21] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, round(width * 4 / 3))
    box_width = min(width, round(height * 4 / 3))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


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
