"""A transport that finds misuse of buffers: `pipeline.checked=true`, and every test.

A receive goes to a buffer of its own while the real one holds a poison until wait(); a
buffer that is being sent may not change until wait(); what the link itself does to a buffer
of a transfer under way raises at once. With NCCL such mistakes give wrong numbers now and
then; here they show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from dglpipe.errors import LinkError
from dglpipe.pipeline.transport import Transport, Work

POISON = 0xFF
"""As a float of any width it is NaN, as a label it is -1."""


class CheckedTransport:
    """Wraps the transport of a link.

    Every method, and `wait()` of what it gives, raises LinkError on misuse.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._sending: list[Tensor] = []
        self._receiving: list[Tensor] = []

    def isend(self, tensor: Tensor) -> Work:
        self._refuse(tensor, self._sending, "sent again while it was being sent")
        self._refuse(tensor, self._receiving, "sent while a receive into it was under way")
        self._sending.append(tensor)
        digest = _digest(tensor)
        return _Checked(self._inner.isend(tensor), lambda: self._sent(tensor, digest))

    def irecv(self, tensor: Tensor) -> Work:
        self._refuse(tensor, self._sending, "posted for a receive while it was being sent")
        self._refuse(tensor, self._receiving, "posted again while a receive was under way")
        self._receiving.append(tensor)
        shadow = torch.empty_like(tensor)
        work = self._inner.irecv(shadow)
        tensor.fill_(POISON)
        return _Checked(work, lambda: self._received(tensor, shadow))

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._refuse(source, self._receiving, "read while a receive into it was under way")
        self._refuse_write(target)
        self._inner.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._refuse_write(target)
        self._inner.fill(target, value)

    def _refuse_write(self, target: Tensor) -> None:
        self._refuse(target, self._sending, "written while it was being sent")
        self._refuse(target, self._receiving, "written while a receive into it was under way")

    @staticmethod
    def _refuse(tensor: Tensor, busy: list[Tensor], what: str) -> None:
        if any(_overlap(tensor, other) for other in busy):
            raise LinkError(f"a buffer was {what}")

    def _sent(self, tensor: Tensor, digest: bytes) -> None:
        _remove(self._sending, tensor)
        if _digest(tensor) != digest:
            raise LinkError("a buffer was written while it was being sent")

    def _received(self, tensor: Tensor, shadow: Tensor) -> None:
        _remove(self._receiving, tensor)
        if not bool((tensor == POISON).all()):
            raise LinkError("a buffer was written while a receive into it was under way")
        tensor.copy_(shadow)


class _Checked:
    """A transfer with something to do when it is through."""

    def __init__(self, work: Work, then: Callable[[], None]) -> None:
        self._work = work
        self._then = then

    def wait(self) -> None:
        self._work.wait()
        self._then()


def _remove(busy: list[Tensor], tensor: Tensor) -> None:
    busy[:] = [other for other in busy if other is not tensor]


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors share memory."""
    first, second = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in (one, other))
    return first[0] + first[1] > second[0]


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.cpu().numpy().data, digest_size=16).digest()
