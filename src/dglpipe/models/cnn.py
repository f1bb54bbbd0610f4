"""The paper's plain networks: 3x3 convolutions and an MLP."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from dglpipe.config import CnnConfig, DniCnnConfig
from dglpipe.models.blocks import average_pool, mlp

NETWORKS = {
    "cnn4": "4 layers of 3x3 convolution, width x 1, 2, 2, 4, and an MLP",
    "cnn6": "6 layers of 3x3 convolution, width x 1, 2, 2, 4, 4, 4, and an MLP",
    "dni_cnn": "3 layers of 5x5 convolution and 3x3 pooling, and a linear layer",
}
MULTIPLES = {"cnn4": (1, 2, 2, 4), "cnn6": (1, 2, 2, 4, 4, 4)}
"""Channels of each layer in units of `width`."""
POOLS = (1, 3)
"""Layers, counted from 0, that are preceded by a 2x2 max-pool."""


class Cnn(nn.Module):
    """Images (B, channels, H, H) -> logits (B, N).

    Args:
        channels: channels of the images.
        widths: output channels of every layer.
        pools: layers preceded by a 2x2 max-pool.
        dropout: probability that a channel is dropped after a layer.
        hidden_layers: hidden layers of the classifier.
        classes: N.
        image_size: H in pixels. `partition.propagate_shapes` raises an error if H is too small
            for the pools.
    """

    def __init__(
        self,
        channels: int,
        widths: list[int],
        pools: list[int],
        dropout: float,
        hidden_layers: int,
        classes: int,
        image_size: int,
    ) -> None:
        super().__init__()
        inputs = [channels, *widths]
        self.layers = nn.Sequential(
            *(_layer(inputs[i], width, i in pools, dropout) for i, width in enumerate(widths))
        )
        side = max(1, image_size >> len(pools))
        self.pool = average_pool((side, side), (2, 2))
        self.flatten = nn.Flatten()
        features = widths[-1] * min(2, side) ** 2
        self.classifier = mlp(features, 4 * widths[-1], hidden_layers, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, H) -> (B, N)"""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.layers(images))))
        return logits


def _layer(channels: int, width: int, pool: bool, dropout: float) -> nn.Sequential:
    """[pool,] convolution, batch norm, ReLU[, dropout of whole channels]"""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if pool:
        parts["pool"] = nn.MaxPool2d(2)
    parts["conv"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    parts["norm"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU(inplace=True)
    if dropout > 0:
        parts["dropout"] = nn.Dropout2d(dropout)
    return nn.Sequential(parts)


def build(config: CnnConfig, channels: int, classes: int, image_size: int) -> Cnn:
    """Builds the network that `config` describes."""
    widths = config.widths or [config.width * times for times in MULTIPLES[config.name]]
    pools = list(POOLS) if config.pools is None else config.pools
    return Cnn(channels, widths, pools, config.dropout, config.hidden_layers, classes, image_size)


class DniCnn(nn.Module):
    """Images (B, channels, H, H) -> logits (B, N), as in the paper's comparison with DNI.

    Three layers of 5x5 convolution, BN, ReLU and a 3x3 pool with stride 3, which is a max-pool in
    the first layer and an average pool in the others; then a linear layer. H = 32 gives 1x1 maps.

    Args:
        channels: channels of the images.
        width: channels of every layer.
        classes: N.
        image_size: H in pixels, at least 27.
    """

    def __init__(self, channels: int, width: int, classes: int, image_size: int) -> None:
        super().__init__()
        pools = nn.MaxPool2d(3), nn.AvgPool2d(3), nn.AvgPool2d(3)
        self.layers = nn.Sequential(
            *(_pooled(width if at else channels, width, pool) for at, pool in enumerate(pools))
        )
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(width * max(1, image_size // 27) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, H) -> (B, N)"""
        logits: Tensor = self.linear(self.flatten(self.layers(images)))
        return logits


def _pooled(channels: int, width: int, pool: nn.Module) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(channels, width, 5, padding=2)
    parts["norm"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["pool"] = pool
    return nn.Sequential(parts)


def build_dni(config: DniCnnConfig, channels: int, classes: int, image_size: int) -> DniCnn:
    """Builds the network that `config` describes."""
    return DniCnn(channels, config.width, classes, image_size)
