"""Sources of the batches of a process: the data set, or the link from the stage below."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dglpipe.data import DataSet
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule, Phase
from dglpipe.data.dataset import Request
from dglpipe.data.sampler import epoch_order
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.link import Receiver
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS

NO_EXTRAS: Mapping[str, Tensor] = MappingProxyType({})


class Arrival(NamedTuple):
    """One batch for the first stage of a process."""

    item: BatchItem
    batch: Tensor
    """(rows, ...)"""
    labels: Tensor
    """(rows,), int64"""
    ensemble: Tensor | None
    """(rows, N): weighted sum of the exits below; None in training and at stage 0."""
    extras: Mapping[str, Tensor] = NO_EXTRAS
    """Extra tensors of the message by their declared names, each (rows, ...)."""


class Inputs(Protocol):
    """A stream of arrivals in the order of the batch schedule."""

    @property
    def workers(self) -> int | None:
        """Number of processes that decode images (`DataSet.workers`); None: no such processes."""
        ...

    def take(self) -> Arrival:
        """The next arrival. Its tensors are valid until the next call."""
        ...

    def check(self) -> None:
        """Raises LinkError if a message differs from the batch schedule."""

    def close(self) -> None:
        """Stops loading."""


class DataInputs:
    """Feeds stage 0 with the rows of one replica.

    Args:
        items: the batches of `schedule` to load, in order.
    """

    def __init__(
        self,
        data: DataSet,
        schedule: BatchSchedule,
        items: Iterable[BatchItem],
        seed: int,
        device: Device,
    ) -> None:
        self._data = data
        self.workers = data.workers
        self._pending: deque[BatchItem] = deque()
        self._device = device
        self._batches = data.batches(self._requests(items, seed, schedule))

    def _requests(
        self, items: Iterable[BatchItem], seed: int, schedule: BatchSchedule
    ) -> Iterator[Request]:
        order, epoch = torch.empty(0, dtype=torch.int64), 0
        for item in items:
            self._pending.append(item)
            rows = slice(item.first, item.first + item.rows)
            if item.phase is Phase.TEST:
                yield Request(False, item.round_epoch, torch.arange(rows.start, rows.stop))
                continue
            if item.phase is Phase.PROBE:
                yield Request(False, item.round_epoch, torch.tensor(schedule.probe_rows(item)))
                continue
            if item.round_epoch != epoch:
                order, epoch = epoch_order(seed, item.round_epoch, schedule.train), item.round_epoch
            yield Request(True, item.round_epoch, order[rows])

    def take(self) -> Arrival:
        """The next batch, on the device."""
        images, labels = next(self._batches)
        item = self._pending.popleft()
        return Arrival(item, self._device.put(images), self._device.put(labels), None)

    def check(self) -> None:
        """Does nothing: a data set sends no messages."""

    def close(self) -> None:
        self._data.close()


class LinkInputs:
    """Feeds the first stage of a process from the stage below.

    Args:
        extras: names of the declared tensors of a message besides labels and activations.
    """

    workers: int | None = None

    def __init__(self, receiver: Receiver, extras: Sequence[str] = ()) -> None:
        self._receiver = receiver
        self._extras = tuple(extras)

    def take(self) -> Arrival:
        """The next message; see `Receiver.take`."""
        item, parts = self._receiver.take()
        return arrival(item, parts, self._extras)

    def check(self) -> None:
        self._receiver.check()

    def close(self) -> None:
        """Does nothing: the process group closes the links."""


def arrival(item: BatchItem, parts: Mapping[str, Tensor], extras: Sequence[str]) -> Arrival:
    """Converts the `parts` of a received message to an arrival."""
    more = {name: parts[name] for name in extras if name in parts} if extras else NO_EXTRAS
    return Arrival(item, parts[ACTIVATIONS], parts[LABELS], parts.get(ENSEMBLE), more)
