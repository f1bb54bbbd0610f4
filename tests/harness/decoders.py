"""Decoders for loading processes, with and without trouble."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import torch

from dglpipe.errors import DataError

TROUBLE = 1000
"""The index whose image causes trouble."""


@dataclass(frozen=True)
class NumberDecoder:
    """Images (2,3,3) whose pixels are index + epoch, plus 100 in training.

    Args:
        how: what happens at index `TROUBLE`.
    """

    how: str = "nothing"

    @property
    def shape(self):
        return 2, 3, 3

    def decode(self, request):
        if TROUBLE in request.indices.tolist():
            _ACTS[self.how]()
        values = request.indices + request.epoch + 100 * request.training
        return values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *self.shape)


def _refuse():
    raise DataError("a.jpg: is not an image")


_ACTS = {
    "nothing": lambda: None,
    "refuse": _refuse,
    "raise": lambda: {}["no such key"],
    "memory": lambda: bytearray(1 << 60),
    "sys.exit": lambda: sys.exit("enough"),
    "exit": lambda: os._exit(3),
    "exit 0": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(1000),
}
