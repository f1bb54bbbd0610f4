"""Data sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dglpipe.config.checks import require, require_name, require_number, require_path
from dglpipe.config.plugin import PluginConfig

FLIPS = ("random", "alternating")
BORDERS = ("zeros", "reflect")


@dataclass(kw_only=True, slots=True)
class DigitsConfig:
    """1,797 embedded images of handwritten digits, 8x8 pixels, 1 channel."""

    name: str = "digits"
    """Always `digits`."""
    image_size: int = 8
    """Height and width of the images in pixels; 1 to 16384; images are interpolated if not 8."""

    def __post_init__(self) -> None:
        _check_image_size(self.image_size)


@dataclass(kw_only=True, slots=True)
class Cifar10Config:
    """CIFAR-10 of torchvision."""

    name: str = "cifar10"
    """Always `cifar10`."""
    root: str = "data"
    """Folder that contains `cifar-10-batches-py`."""
    download: bool = False
    """Download the data set to `root` if it is missing."""
    image_size: int = 32
    """Height and width of the images in pixels; 1 to 16384; images are interpolated if not 32."""
    augment: bool = True
    """Augment training images: random crop, random horizontal flip."""
    flip: str = "random"
    """Horizontal flips of augmented training images: `random`, or `alternating`: every image is
    flipped in every second epoch, beginning with the first or the second at random."""
    crop_padding: int = 4
    """Pixels of padding on each side of an image before a random crop; 0 to 1000."""
    crop_border: str = "zeros"
    """What the padding has: `zeros`, or `reflect`: the image, mirrored at its border."""

    def __post_init__(self) -> None:
        require_path("data.root", self.root)
        _check_image_size(self.image_size)
        _check_augmentation(self)


@dataclass(kw_only=True, slots=True)
class ImageFolderConfig:
    """`train/<class>/*` and `val/<class>/*` or `test/<class>/*` under `root`."""

    name: str = "image_folder"
    """Always `image_folder`."""
    root: str = ""
    """Folder that contains `train/` and `val/` or `test/`; required."""
    transform: str = "cifar"
    """`cifar`: random crop of the padded image and horizontal flip. `imagenet`: RandomResizedCrop
    and horizontal flip in training; at test time, resize the shorter side to 8/7 of `image_size`
    and crop the centre."""
    image_size: int | None = None
    """Height and width of the images in pixels; 1 to 16384; null: the size of the first training
    image, 224 if `transform=imagenet`."""
    augment: bool = True
    """Apply the random crop and flip of `transform` to training images."""
    flip: str = "random"
    """Horizontal flips of augmented training images: `random`, or `alternating`: every image is
    flipped in every second epoch, beginning with the first or the second at random."""
    crop_padding: int = 4
    """Pixels of padding on each side of an image before a random crop, for `transform=cifar`; 0 to
    1000."""
    crop_border: str = "zeros"
    """What the padding has: `zeros`, or `reflect`: the image, mirrored at its border."""
    workers: int | None = None
    """Loading processes per replica, for images that are not kept in memory; from 0; 0: decode
    in the training process; null: one per core, divided among the replicas of a machine."""
    memory_limit_mb: int = 4096
    """Size limit in MiB up to which all images are decoded once and kept in memory; from 0."""

    def __post_init__(self) -> None:
        require(bool(self.root), "data.root", self.root, "a folder with train/ and val/ or test/")
        require_path("data.root", self.root)
        require_name("data.transform", self.transform, ("cifar", "imagenet"))
        _check_augmentation(self)
        if self.image_size is not None:
            _check_image_size(self.image_size)
        if self.workers is not None:
            require_number("data.workers", self.workers, 0)
        require_number("data.memory_limit_mb", self.memory_limit_mb, 0)


@dataclass(kw_only=True, slots=True)
class SyntheticConfig:
    """Random images of any shape: one smooth pattern per class, plus Gaussian noise."""

    name: str = "synthetic"
    """Always `synthetic`."""
    samples: int = 1024
    """Training images; from 1. The test split has a quarter as many, at least 1."""
    classes: int = 10
    """N, the number of classes; 2 to 100000."""
    channels: int = 3
    """C, the number of channels; 1 to 65536."""
    image_size: int = 32
    """Height and width of the images in pixels; 1 to 16384."""
    noise: float = 1.0
    """Standard deviation of the noise, relative to that of the patterns; 0 to 1000000."""

    def __post_init__(self) -> None:
        require_number("data.samples", self.samples, 1)
        require_number("data.classes", self.classes, 2, 100_000)
        require_number("data.channels", self.channels, 1, 65536)
        _check_image_size(self.image_size)
        require_number("data.noise", self.noise, 0, 1_000_000)


def _check_augmentation(config: Cifar10Config | ImageFolderConfig) -> None:
    require_name("data.flip", config.flip, FLIPS)
    require_name("data.crop_border", config.crop_border, BORDERS)
    require_number("data.crop_padding", config.crop_padding, 0, 1000)
    is_imagenet = isinstance(config, ImageFolderConfig) and config.transform == "imagenet"
    unused = {
        "data.augment=false": () if config.augment else ("flip", "crop_padding", "crop_border"),
        "data.transform=imagenet": ("crop_padding", "crop_border") if is_imagenet else (),
    }
    defaults = {one.name: one.default for one in fields(config)}
    for setting, names in unused.items():
        for name in names:
            got, allowed = getattr(config, name), f"{defaults[name]} with {setting}"
            require(got == defaults[name], f"data.{name}", got, allowed)


def _check_image_size(side: int) -> None:
    require_number("data.image_size", side, 1, 16384)


DataConfig = DigitsConfig | Cifar10Config | ImageFolderConfig | SyntheticConfig | PluginConfig
DATA_SETS: dict[str, type[Any]] = {
    "digits": DigitsConfig,
    "cifar10": Cifar10Config,
    "image_folder": ImageFolderConfig,
    "synthetic": SyntheticConfig,
}
"""Built-in data sets: name -> schema."""
