"""Data sets, batch order, augmentation, and the batch schedule of a run.

`open_data`, in this file, opens a data set by its configuration; each data set has a file of its
own. Begin reading at `dataset.py`, which defines the interface. Images are stored as (n,H,W,C)
uint8. Batch order (`sampler`) and augmentation (`transforms`) are pure functions of the seed. This
package imports `config`, `errors`, `host` and `seeds`; only the files that decode images or read
CIFAR-10 load torchvision.
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
    config: DataConfig,
    seed: int,
    wanted_channels: int | None = None,
    loaders: int = 1,
    timeout_s: float = 600.0,
) -> DataSource:
    """Opens the data set of `config`. Reads no files; `info` and `load` of the result do.

    Args:
        config: name and settings of the data set.
        seed: seed of the run; determines augmentation and synthetic images.
        wanted_channels: C, the channels that the network requires; images of one channel are
            repeated. None: any number.
        loaders: number of replicas on this machine that load data; they share the cores of the
            machine for their loading processes.
        timeout_s: seconds in which loading processes have to start; a batch has to arrive within
            half of that time.
    """
    if isinstance(config, DigitsConfig):
        return DigitsSource(config, seed, wanted_channels)
    if isinstance(config, SyntheticConfig):
        return SyntheticSource(config, seed, wanted_channels)
    # The next two load torchvision, which takes seconds: imported only where needed.
    if isinstance(config, Cifar10Config):
        from dglpipe.data.cifar10 import Cifar10Source

        return Cifar10Source(config, seed, wanted_channels)
    if isinstance(config, ImageFolderConfig):
        from dglpipe.data.image_folder import ImageFolderSource

        return ImageFolderSource(config, seed, wanted_channels, loaders, timeout_s)
    return CustomSource(config, seed, wanted_channels)
