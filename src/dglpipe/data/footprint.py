"""Memory of a data set that a process keeps in memory."""

from __future__ import annotations

from dglpipe.config import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    SyntheticConfig,
)
from dglpipe.data.info import DataInfo

_MIB = 2**20


def data_bytes(config: DataConfig, info: DataInfo) -> int:
    """Bytes of the images that a process of stage 0 keeps in memory, as uint8; a lower bound.

    0 for images that are decoded batch by batch, and for data sets from outside the package.
    """
    images = (info.train + info.test) * info.height * info.width * info.channels
    if isinstance(config, ImageFolderConfig):
        streamed = config.transform == "imagenet" or images > config.memory_limit_mb * _MIB
        return 0 if streamed else images
    if isinstance(config, SyntheticConfig):  # and one pattern per class, in float32
        return images + 4 * len(info.classes) * info.height * info.width * config.channels
    return images if isinstance(config, DigitsConfig | Cifar10Config) else 0
