"""Point-to-point transfers over torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.transport import Work

LINK_CTAS = 4
"""Maximum number of thread blocks for one transfer; a GPU runs about 100 at a time."""


class PairGroup(Protocol):
    """The operations of a process group of two ranks that a link uses."""

    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...


class PeerWork:
    """A transfer that raises PeerLostError on failure.

    Args:
        peer: the neighbour, for the error message.
    """

    def __init__(self, work: Work, peer: str) -> None:
        self._work = work
        self._peer = peer

    def wait(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise PeerLostError(f"lost {self._peer}: {first_line(error)}") from error


class PairTransport:
    """Point-to-point transfers with one neighbour.

    Args:
        group: a process group of this rank and the neighbour.
        peer_in_group: rank of the neighbour in `group`.
        peer: the neighbour, for error messages.
    """

    def __init__(self, group: PairGroup, peer_in_group: int, peer: str) -> None:
        self._group = group
        self._peer_in_group = peer_in_group
        self._peer = peer

    def isend(self, tensor: Tensor) -> Work:
        return self._issue(self._group.send, tensor)

    def irecv(self, tensor: Tensor) -> Work:
        return self._issue(self._group.recv, tensor)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def fill(self, target: Tensor, value: int) -> None:
        if target.is_cpu:
            target.numpy().fill(value)  # three times as fast as fill_
        else:
            target.fill_(value)

    def _issue(self, operation: Callable[[list[Tensor], int, int], Work], tensor: Tensor) -> Work:
        # dist.isend and dist.irecv make the same call after checks of their arguments.
        try:
            work = operation([tensor], self._peer_in_group, 0)
        except RuntimeError as error:
            raise PeerLostError(f"lost {self._peer}: {first_line(error)}") from error
        return PeerWork(work, self._peer)


def link_options(timeout: timedelta) -> dist.ProcessGroupNCCL.Options:
    """NCCL options of a link: few thread blocks, on a high-priority stream.

    A transfer spins on its thread blocks until the peer joins, so it must not hold many. The
    priority lets a transfer start before queued kernels.
    """
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = LINK_CTAS
    options._timeout = timeout
    return options


def warm_up(transport: PairTransport, sends: bool, device: Device) -> None:
    """Transfers one byte: the first transfer sets up the connection and may block."""
    byte = torch.zeros(1, dtype=torch.uint8, device=device.torch_device)
    (transport.isend(byte) if sends else transport.irecv(byte)).wait()


def first_line(error: Exception) -> str:
    """The first line of the message of `error`, or the type of `error` without a message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
