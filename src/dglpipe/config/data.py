"""Data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require, require_name, require_number
from dglpipe.config.plugin import PluginConfig


@dataclass(kw_only=True, slots=True)
class DigitsConfig:
    """1,797 embedded images of handwritten digits, 8x8 pixels, 1 channel."""

    name: str = "digits"
    image_size: int = 8
    """Side of the images in pixels; other sides than 8 are interpolated."""

    def __post_init__(self) -> None:
        require_number("data.image_size", self.image_size, 1)


@dataclass(kw_only=True, slots=True)
class Cifar10Config:
    """torchvision's CIFAR-10: random crop with padding 4 and flip in training."""

    name: str = "cifar10"
    root: str = "data"
    """Folder that holds `cifar-10-batches-py`."""
    download: bool = False
    """Fetch the data set when it is not there."""
    image_size: int = 32
    """Side of the images in pixels; other sides than 32 are interpolated."""
    augment: bool = True

    def __post_init__(self) -> None:
        require_number("data.image_size", self.image_size, 1)


@dataclass(kw_only=True, slots=True)
class ImageFolderConfig:
    """`train/<class>/*` and `val/<class>/*` or `test/<class>/*` under `root`."""

    name: str = "image_folder"
    root: str = ""
    transform: str = "cifar"
    """`cifar`: random crop with padding 4 and flip; `imagenet`: RandomResizedCrop and
    flip, at test time the shorter side to 8/7 of `image_size`, then the centre."""
    image_size: int | None = None
    """Side of the images in pixels; null: that of the first training image, 224 with
    `imagenet`."""
    augment: bool = True
    workers: int | None = None
    """Decoding processes of a replica for images that are not held in memory; null: one a core,
    shared by the replicas of a machine."""
    memory_limit_mb: int = 4096
    """Images are decoded once into memory if all of them fit into this, in MiB."""

    def __post_init__(self) -> None:
        require(bool(self.root), "data.root", self.root, "a folder with train/ and val/ or test/")
        require_name("data.transform", self.transform, ("cifar", "imagenet"))
        if self.image_size is not None:
            require_number("data.image_size", self.image_size, 1)
        if self.workers is not None:
            require_number("data.workers", self.workers, 0)
        require_number("data.memory_limit_mb", self.memory_limit_mb, 0)


@dataclass(kw_only=True, slots=True)
class SyntheticConfig:
    """Seeded images of any shape: a pattern a class, plus noise."""

    name: str = "synthetic"
    samples: int = 1024
    """Training images; a quarter as many again are for testing."""
    classes: int = 10
    channels: int = 3
    image_size: int = 32
    """Side in pixels."""
    noise: float = 1.0
    """Standard deviation of the noise; that of the patterns is 1."""

    def __post_init__(self) -> None:
        require_number("data.samples", self.samples, 1)
        require_number("data.classes", self.classes, 2)
        require_number("data.channels", self.channels, 1)
        require_number("data.image_size", self.image_size, 1)
        require_number("data.noise", self.noise, 0)


DataConfig = DigitsConfig | Cifar10Config | ImageFolderConfig | SyntheticConfig | PluginConfig
DATA_SETS: dict[str, type[Any]] = {
    "digits": DigitsConfig,
    "cifar10": Cifar10Config,
    "image_folder": ImageFolderConfig,
    "synthetic": SyntheticConfig,
}
