"""Layers that networks and heads share."""

from __future__ import annotations

from torch import nn


def average_pool(side: tuple[int, int], most: tuple[int, int]) -> nn.Module:
    """Average pool of maps (B, C, H, W) of `side` (H, W) to at most `most`; never enlarges.

    Uses `AvgPool2d` if all windows have the same size: on CUDA, the backward of `AvgPool2d` is
    deterministic, and the backward of `AdaptiveAvgPool2d` is not.
    """
    height, width = (min(have, want) for have, want in zip(side, most, strict=True))
    if (height, width) == tuple(side):
        return nn.Identity()
    if side[0] % height or side[1] % width:
        return nn.AdaptiveAvgPool2d((height, width))
    return nn.AvgPool2d((side[0] // height, side[1] // width))


def mlp(features: int, hidden: int, layers: int, classes: int) -> nn.Sequential:
    """(B, features) -> (B, classes) through `layers` x (linear, BN, ReLU) and a linear layer."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts += [
            nn.Linear(hidden if layer else features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts, nn.Linear(hidden if layers else features, classes))
