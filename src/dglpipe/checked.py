"""A transport that finds misuse of buffers: `pipeline.checked=true`, and every test.

A receive goes to a buffer of its own while the real one holds a poison until wait(); a
buffer that is being sent may not change until wait(). With NCCL such mistakes give wrong
numbers now and then; here they show at once.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dglpipe.errors import LinkError
from dglpipe.link import Transport, Work

POISON = 0xFF
"""As a float of any width it is NaN, as a label it is -1."""


class CheckedTransport:
    """Wraps the transport of a link."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def isend(self, tensor: Tensor) -> Work:
        return _CheckedSend(self._inner.isend(tensor), tensor)

    def irecv(self, tensor: Tensor) -> Work:
        shadow = torch.empty_like(tensor)
        work = self._inner.irecv(shadow)
        tensor.fill_(POISON)
        return _CheckedReceive(work, tensor, shadow)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._inner.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._inner.fill(target, value)


class _CheckedSend:
    def __init__(self, work: Work, tensor: Tensor) -> None:
        self._work = work
        self._tensor = tensor
        self._digest = _digest(tensor)

    def wait(self) -> None:
        self._work.wait()
        if _digest(self._tensor) != self._digest:
            raise LinkError("a buffer was written while it was being sent")


class _CheckedReceive:
    def __init__(self, work: Work, tensor: Tensor, shadow: Tensor) -> None:
        self._work = work
        self._tensor = tensor
        self._shadow = shadow

    def wait(self) -> None:
        self._work.wait()
        if not bool((self._tensor == POISON).all()):
            raise LinkError("a buffer was written while a receive into it was under way")
        self._tensor.copy_(self._shadow)


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.cpu().numpy().data, digest_size=16).digest()
