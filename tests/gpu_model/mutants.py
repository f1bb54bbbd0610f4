"""Senders, receivers and transports with one fault each, which the model has to detect."""

from __future__ import annotations

from collections.abc import Mapping

from chain_model import CPU, LAYOUTS, Parts
from streams import ModelTransport, ModelWork, Operation
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import HEADER
from dglpipe.pipeline.transport import Slot


class NoWaitOnReceive(ModelTransport):
    """Reads without waiting for the transfer."""

    def irecv(self, tensor: Tensor) -> ModelWork:
        work = super().irecv(tensor)
        work.wait = lambda: None  # type: ignore[method-assign]
        return work


class NoWaitOnSend(Sender):
    """Writes the slot again without waiting for the previous message."""

    def wait(self) -> None:
        self._work = None


class PostsSlotInUse(Receiver):
    """Posts a receive into the slot that the stage is using."""

    def take(self) -> tuple[BatchItem, dict[str, Tensor]]:
        taken = super().take()
        self.give_up_slot()
        return taken

    def give_up_slot(self) -> None:
        assert self._in_use is not None
        self._free.append(self._in_use)
        self._in_use = None
        self._post()


class PostsBeforeBackward(PostsSlotInUse):
    """Posts a receive into the slot after the forward was issued, but before the backward."""

    def take(self) -> tuple[BatchItem, dict[str, Tensor]]:
        return Receiver.take(self)

    def after_forward(self) -> None:
        self.give_up_slot()


class WritesAfterSend(Sender):
    """Modifies a buffer in place during its transfer."""

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        super().send(item, parts)
        self._transport.fill(self._slot.views(item)[HEADER][1], -1)
        for name in parts:
            self._transport.fill(self._slot.views(item)[name], 0)


class SendsUnordered(ModelTransport):
    """Starts a transfer without an event of the stream that writes or reads the buffer."""

    def event(self) -> Operation:
        event = Operation(None)
        event.done = True
        return event


class PostsOneMore(Receiver):
    """Posts D receives ahead, where D - 1 is the bound."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._free.append(Slot(LAYOUTS, CPU))
        self._post()


class ForgetsAReceive(Receiver):
    """Treats one message as received although no receive was posted."""

    def _post(self) -> None:
        super()._post()
        if self._posted and self._posted[-1][0].number == 3:
            self._transport.group.receives.pop()  # type: ignore[attr-defined]


class SkipsAMessage(Sender):
    """Skips one message, so that the stages work on different batches."""

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        if item.number != 2:
            super().send(item, parts)


MUTANTS: dict[str, tuple[Parts, set[str]]] = {
    "no wait on receive": (Parts(transport=NoWaitOnReceive), {"forward"}),
    "no wait on send": (Parts(sender=NoWaitOnSend), {"forward", "header"}),
    "slot in use posted": (Parts(receiver=PostsSlotInUse), {"forward"}),
    "slot posted before backward": (Parts(receiver=PostsBeforeBackward), {"backward"}),
    "written after send": (Parts(sender=WritesAfterSend), {"forward", "header"}),
    "transfer not ordered": (Parts(transport=SendsUnordered), {"forward", "backward"}),
    "one receive too many": (Parts(receiver=PostsOneMore), {"bound"}),
    "receive forgotten": (Parts(receiver=ForgetsAReceive), {"deadlock"}),
    "message left out": (Parts(sender=SkipsAMessage), {"forward", "header"}),
}
"""Name -> chain with the fault, and the problem that at least one schedule has to show."""
