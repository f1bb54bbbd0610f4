"""Opens the data set of a run with the number of channels that the network requires."""

from __future__ import annotations

from torch import nn

from dglpipe.config import Config, CustomModelConfig
from dglpipe.data import DataSource, open_data
from dglpipe.models import build_network, wanted_channels
from dglpipe.models.meta import building


def open_images(config: Config, loaders: int = 1) -> DataSource:
    """Opens the data set of `config`; gray images are repeated for a network of more channels.

    For a network from outside the package, its first convolution determines the channels.

    Args:
        loaders: number of replicas on this machine that load data; they share the cores.

    Raises:
        ConfigError: a network from outside the package cannot be built.
        DataError: the data set is missing, or its channels do not fit the network.
    """
    wanted = wanted_channels(config.model)
    source = open_data(config.data, config.seed, wanted, loaders, config.timeout_s)
    if isinstance(config.model, CustomModelConfig) and source.info.channels == 1:
        data = source.info
        with building(True, 0):
            network = build_network(config.model, data.channels, len(data.classes), data.height)
        convolutions = (one for one in network.modules() if isinstance(one, nn.Conv2d))
        wanted = next((one.in_channels for one in convolutions), None)
        source = open_data(config.data, config.seed, wanted, loaders, config.timeout_s)
    return source
