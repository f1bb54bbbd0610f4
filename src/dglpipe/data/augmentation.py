"""The random crops and flips that the settings of a data set ask for."""

from __future__ import annotations

from dglpipe.config import Cifar10Config, ImageFolderConfig
from dglpipe.data.transforms import Augmentation
from dglpipe.errors import ConfigError


def augmentation(
    config: Cifar10Config | ImageFolderConfig, height: int, width: int
) -> Augmentation | None:
    """Crops and flips of training images; None: `data.augment=false`.

    Args:
        height: H of the images in a batch, in pixels.
        width: W of these images.

    Raises:
        ConfigError: the images are too small to be mirrored at their borders.
    """
    if not config.augment:
        return None
    padding, largest = config.crop_padding, min(height, width) - 1
    if config.crop_border == "reflect" and padding > largest:
        allowed = f"0 to {largest} for images of {height}x{width} with data.crop_border=reflect"
        raise ConfigError("data.crop_padding", padding, allowed)
    return Augmentation(config.flip, padding, config.crop_border)
