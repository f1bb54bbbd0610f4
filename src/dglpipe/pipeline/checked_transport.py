"""A transport that detects misuse of buffers (`pipeline.checked=true`).

The transport detects three kinds of misuse:

- A receive goes to a shadow buffer. The real buffer holds poison until `wait()`, so early reads
  show as NaN, and early writes raise LinkError.
- A digest of every sent buffer is compared at `wait()`, so a write during a send raises
  LinkError.
- An operation of the link on a buffer of a pending transfer raises LinkError at once.

With NCCL, the same mistakes give wrong numbers in some runs only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from dglpipe.errors import LinkError
from dglpipe.pipeline.transport import Transport, Work

POISON = 0xFF
"""Byte that reads as NaN in floating-point numbers and as -1 in labels."""


class CheckedTransport:
    """Wraps the transport of a link.

    Every method, and `wait()` of the returned work, raises LinkError on misuse.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._sending: list[Tensor] = []
        self._receiving: list[Tensor] = []

    def isend(self, tensor: Tensor) -> Work:
        self._refuse(tensor, self._sending, "sent again while it was being sent")
        self._refuse(tensor, self._receiving, "sent while a receive into it was in progress")
        self._sending.append(tensor)
        digest = _digest(tensor)
        return CheckedWork(self._inner.isend(tensor), lambda: self._sent(tensor, digest))

    def irecv(self, tensor: Tensor) -> Work:
        self._refuse(tensor, self._sending, "posted for a receive while it was being sent")
        self._refuse(tensor, self._receiving, "posted again while a receive was in progress")
        self._receiving.append(tensor)
        shadow = torch.empty_like(tensor)
        work = self._inner.irecv(shadow)
        tensor.fill_(POISON)
        return CheckedWork(work, lambda: self._received(tensor, shadow))

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._refuse(source, self._receiving, "read while a receive into it was in progress")
        self._refuse_write(target)
        self._inner.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._refuse_write(target)
        self._inner.fill(target, value)

    def _refuse_write(self, target: Tensor) -> None:
        self._refuse(target, self._sending, "written while it was being sent")
        self._refuse(target, self._receiving, "written while a receive into it was in progress")

    @staticmethod
    def _refuse(tensor: Tensor, pending: list[Tensor], what: str) -> None:
        """Raises LinkError if `tensor` overlaps the buffer of a pending transfer."""
        if any(_overlap(tensor, other) for other in pending):
            raise LinkError(f"a buffer was {what}")

    def _sent(self, tensor: Tensor, digest: bytes) -> None:
        _remove(self._sending, tensor)
        if _digest(tensor) != digest:
            raise LinkError("a buffer was written while it was being sent")

    def _received(self, tensor: Tensor, shadow: Tensor) -> None:
        _remove(self._receiving, tensor)
        if not bool((tensor == POISON).all()):
            raise LinkError("a buffer was written while a receive into it was in progress")
        tensor.copy_(shadow)


class CheckedWork:
    """A transfer with a check after completion."""

    def __init__(self, work: Work, check: Callable[[], None]) -> None:
        self._work = work
        self._check = check

    def wait(self) -> None:
        self._work.wait()
        self._check()


def _remove(pending: list[Tensor], tensor: Tensor) -> None:
    """Removes `tensor` by identity; `list.remove` would compare the elements."""
    pending[:] = [other for other in pending if other is not tensor]


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors share memory."""
    first, second = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in (one, other))
    return first[0] + first[1] > second[0]


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.cpu().numpy().data, digest_size=16).digest()
