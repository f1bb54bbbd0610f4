"""Augmentation of whole batches: pure functions of images and random numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

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
