"""Interfaces of transfers, and the buffers of a link."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.pipeline.message import MessageFormats


class Header(NamedTuple):
    """Content of a message, for links whose messages do not follow the batch schedule."""

    phase: Phase
    number: int
    """Number of the output of the stage below in training; number of the batch in evaluation."""
    rows: int

    def __str__(self) -> str:
        return f"{self.phase.name.lower()} batch {self.number} of {self.rows} rows"


class Work(Protocol):
    """A transfer in progress."""

    def wait(self) -> object:
        """Orders later operations after the transfer.

        With gloo, the process waits; with NCCL, the current stream waits.
        """


class Transport(Protocol):
    """The operations of a device and a backend that a link uses."""

    def isend(self, tensor: Tensor) -> Work: ...

    def irecv(self, tensor: Tensor) -> Work: ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies `source` to `target` with a cast, without waiting for the copy."""

    def fill(self, target: Tensor, value: int) -> None:
        """Fills `target` with `value`, without waiting."""


class Slot:
    """A message buffer with cached views by phase and number of rows."""

    def __init__(self, layouts: MessageFormats, device: torch.device) -> None:
        size = max(layout.nbytes(layout.rows) for layout in layouts.values())
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.words = self.buffer[: 3 * 8].view(torch.int64)
        self.header = self.words.unbind()
        self._layouts = layouts
        self._views: dict[tuple[Phase, int], dict[str, Tensor]] = {}
        self._messages: dict[tuple[Phase, int], Tensor] = {}

    def views(self, item: BatchItem | Header) -> dict[str, Tensor]:
        """The parts of a message for `item`, by name."""
        key = item.phase, item.rows
        if key not in self._views:
            self._views[key] = self._layouts[item.phase].views(self.buffer, item.rows)
        return self._views[key]

    def message(self, item: BatchItem) -> Tensor:
        """The bytes of a message for `item`: a prefix of the buffer."""
        key = item.phase, item.rows
        if key not in self._messages:
            size = self._layouts[item.phase].nbytes(item.rows)
            self._messages[key] = self.buffer[:size]
        return self._messages[key]
