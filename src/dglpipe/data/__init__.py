"""Data sets: `open_data` finds one by its configuration.

Images are kept as uint8 in the order (n,H,W,C); which image comes when (`order.py`), and
how it is augmented (`augment.py`), are pure functions of the seed. One data set a file.
"""

from __future__ import annotations

from dglpipe.config import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    SyntheticConfig,
)
from dglpipe.data.custom import CustomSource
from dglpipe.data.dataset import DataSet, DataSource, Request
from dglpipe.data.digits import DigitsSource
from dglpipe.data.info import DataInfo
from dglpipe.data.synthetic import SyntheticSource

__all__ = ["DataInfo", "DataSet", "DataSource", "Request", "open_data"]


def open_data(
    config: DataConfig, seed: int, wanted_channels: int | None = None, loaders: int = 1
) -> DataSource:
    """The data set of `config`; nothing is read before it is asked for.

    Args:
        config: which one, and its settings.
        seed: of the run; decides augmentation and synthetic images.
        wanted_channels: C of the images that the network takes, None for any; images of
            one channel are repeated to it.
        loaders: of replicas on this machine: each starts its share of decoding processes.
    """
    if isinstance(config, DigitsConfig):
        return DigitsSource(config, seed, wanted_channels)
    if isinstance(config, SyntheticConfig):
        return SyntheticSource(config, seed, wanted_channels)
    # The next two are imported late: torchvision takes seconds, in every process.
    if isinstance(config, Cifar10Config):
        from dglpipe.data.cifar10 import Cifar10Source

        return Cifar10Source(config, seed, wanted_channels)
    if isinstance(config, ImageFolderConfig):
        from dglpipe.data.image_folder import ImageFolderSource

        return ImageFolderSource(config, seed, wanted_channels, loaders)
    return CustomSource(config, seed, wanted_channels)
