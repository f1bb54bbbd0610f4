"""Augmentation, resizing and normalisation of images, as pure functions.

Images are (B,H,W,C); augmentation takes its random numbers as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Settings of the random crops and flips of training images.

    Attributes:
        flip: `random` or `alternating`; see `augmentation_draws`.
        padding: pixels of padding on each side of an image before the crop.
        border: what the padding has: `zeros`, or `reflect`: the image, mirrored at its border.
    """

    flip: str = "random"
    padding: int = 4
    border: str = "zeros"


CROP_DRAWS = 3
"""Random numbers per image for `crop_and_flip`."""


def crop_and_flip(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Random crop of the padded image, and random horizontal flip.

    Args:
        images: (B,H,W,C) uint8 or float32.
        draws: (B,3) in [0, 1): top and left of the crop; flipped if the third is below 1/2.

    Returns:
        (B,H,W,C), contiguous, with the dtype of `images`.
    """
    batch, height, width, channels = images.shape
    padding = augmentation.padding
    top, left = (draws[:, :2] * (2 * padding + 1)).to(torch.int64).unbind(1)
    if augmentation.border == "reflect":
        rows, columns = (_mirrored(size, padding) for size in (height, width))
        padded = images.index_select(1, rows).index_select(2, columns)
    else:
        padded = pad(images, (0, 0, padding, padding, padding, padding))
    full_height, full_width = height + 2 * padding, width + 2 * padding
    # A cropped row is a window of W*C consecutive elements. Gathering such windows is several
    # times as fast as indexing pixels.
    windows = padded.flatten().unfold(0, width * channels, channels)
    first = (torch.arange(batch) * full_height + top) * full_width + left
    starts = first[:, None] + torch.arange(height) * full_width
    cropped = windows.index_select(0, starts.flatten()).view(batch, height, width, channels)
    flipped = (draws[:, 2] < 0.5).nonzero().squeeze(1)
    return cropped.index_copy_(0, flipped, cropped.index_select(0, flipped).flip(2))


def _mirrored(size: int, padding: int) -> Tensor:
    """Positions in a line of `size` pixels, with `padding` mirrored positions on each side: the
    first and the last pixel are not repeated."""
    places = torch.arange(-padding, size + padding).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


BOX_DRAWS = 22
"""Random numbers for `random_box`: two for each of ten attempts, and two for the position."""


def random_box(height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
    """Samples a crop as RandomResizedCrop of torchvision does.

    The crop has 8 to 100 % of the area and an aspect ratio of 3:4 to 4:3. If no crop of ten
    attempts fits into the image, the largest centre crop of an allowed ratio is returned.

    Args:
        height: H of the image in pixels.
        width: W of the image in pixels.
        draws: `BOX_DRAWS` random numbers in [0, 1).

    Returns:
        Top, left, height and width of the crop in pixels.
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
    """Subtracts the mean and divides by the standard deviation of pixels in [0, 1]."""

    mean: tuple[float, ...] = (0.0,)
    """One mean per channel, or one for all channels."""
    std: tuple[float, ...] = (1.0,)
    """One standard deviation per channel, or one for all channels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Converts (B,H,W,C) to (B,C,H,W) float32, channels last.

        Scales uint8 images to [0, 1] and normalises them. Other dtypes are only converted.
        """
        if images.dtype is not torch.uint8:
            return images.to(torch.float32).permute(0, 3, 1, 2)
        batch, height, width, channels = images.shape
        # On rows of W*C elements, so that the innermost loop is longer than C; in place, since
        # an allocation costs more than the arithmetic.
        scale, offset = _rows(self.mean, self.std, width, channels)
        rows = images.reshape(batch, height, width * channels).to(torch.float32)
        normal = rows.mul_(scale).add_(offset)
        return normal.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def inverse(self, images: Tensor) -> Tensor:
        """The pixels (B,C,H,W) uint8 of normalised images (B,C,H,W)."""
        mean, std = (
            torch.tensor(one, device=images.device).view(-1, 1, 1) for one in (self.mean, self.std)
        )
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@lru_cache
def _rows(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Scale and offset, (W*C,) each, of a row of pixels in 0..255."""
    means, stds = torch.tensor(mean).expand(channels), torch.tensor(std).expand(channels)
    return (1 / (255 * stds)).repeat(width), (-means / stds).repeat(width)


CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Statistics of CIFAR-10."""

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Statistics of ImageNet, as in torchvision."""


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resizes (B,H,W,C) uint8 to (B,height,width,C) uint8: bilinear, with antialiasing."""
    if tuple(images.shape[1:3]) == (height, width):
        return images
    resized = interpolate(
        images.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True
    )
    return resized.permute(0, 2, 3, 1).contiguous()


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Repeats (B,H,W,1) to (B,H,W,channels); images that have `channels` stay as they are."""
    if images.shape[3] == channels:
        return images
    return images.expand(-1, -1, -1, channels).contiguous()


def centre(image: Tensor, size: int) -> Tensor:
    """Center crop for testing on ImageNet.

    Resizes the shorter side of (H,W,C) uint8 to 8/7 of `size`, and crops the centre.

    Returns:
        (size,size,C) uint8.
    """
    height, width = image.shape[:2]
    shorter = round(size * 8 / 7)
    full = (shorter, int(shorter * width / height))
    if width < height:
        full = (int(shorter * height / width), shorter)
    top, left = round((full[0] - size) / 2), round((full[1] - size) / 2)
    return resize(image[None], *full)[0, top : top + size, left : left + size]
