"""Networks, heads and losses that tests name by `target`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
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


class Trouble(nn.CrossEntropyLoss):
    """A loss that fails at a training step of one rank, once: never again in that folder.

    Args:
        how: `raise`, `hang` or `kill`.
        folder: keeps the mark of what has happened.
    """

    def __init__(self, how, rank, step, folder):
        super().__init__()
        self.how, self.left = how, step
        self.mark = Path(folder) / f"{how}_was_here"
        self.mine = os.environ.get("RANK") == str(rank) and not self.mark.exists()

    def forward(self, logits, labels):
        self.left -= torch.is_grad_enabled()
        if self.mine and self.left == 0:
            self.mark.touch()
            if self.how == "raise":
                raise ZeroDivisionError("trouble on purpose")
            if self.how == "hang":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(logits, labels)
