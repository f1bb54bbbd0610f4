"""Networks, heads and losses that tests name by `target`."""

from __future__ import annotations

from torch import nn


def plain_network(channels, classes, width=4):
    """Two convolutions and a classifier without batch norm: rows do not meet."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
