"""Where the batches of a process come from: the data set, or the link from below."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dglpipe.data import DataSet
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.data.dataset import Request
from dglpipe.data.sampler import epoch_order
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.link import Receiver
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS


class Arrival(NamedTuple):
    """One batch for the first stage of a process."""

    item: BatchItem
    batch: Tensor
    """(rows, ...)"""
    labels: Tensor
    """(rows,), int64"""
    ensemble: Tensor | None
    """(rows, N): weighted sum of the exits below; None in training and at stage 0."""


class Feed(Protocol):
    """A stream of arrivals, in the order of the stream plan."""

    def take(self) -> Arrival: ...

    def check(self) -> None:
        """Raises LinkError if what came was not what was announced."""

    def close(self) -> None: ...


class DataFeed:
    """Feeds stage 0 with the rows of one replica."""

    def __init__(
        self, data: DataSet, size: int, items: Iterable[BatchItem], seed: int, device: Device
    ) -> None:
        self._data = data
        self.workers = data.workers
        self._pending: deque[BatchItem] = deque()
        self._device = device
        self._batches = data.batches(self._requests(items, seed, size))

    def _requests(self, items: Iterable[BatchItem], seed: int, size: int) -> Iterator[Request]:
        order, epoch = torch.empty(0, dtype=torch.int64), 0
        for item in items:
            self._pending.append(item)
            rows = slice(item.first, item.first + item.rows)
            if item.phase is Phase.TEST:
                yield Request(False, item.round_epoch, torch.arange(rows.start, rows.stop))
                continue
            if item.round_epoch != epoch:
                order, epoch = epoch_order(seed, item.round_epoch, size), item.round_epoch
            yield Request(True, item.round_epoch, order[rows])

    def take(self) -> Arrival:
        images, labels = next(self._batches)
        item = self._pending.popleft()
        return Arrival(item, self._device.put(images), self._device.put(labels), None)

    def check(self) -> None:
        """The data set announces nothing."""

    def close(self) -> None:
        self._data.close()


class LinkFeed:
    """Feeds the first stage of a process from the stage below."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def take(self) -> Arrival:
        item, parts = self._receiver.take()
        return Arrival(item, parts[ACTIVATIONS], parts[LABELS], parts.get(ENSEMBLE))

    def check(self) -> None:
        self._receiver.check()

    def close(self) -> None:
        """The links are closed with the process group."""
