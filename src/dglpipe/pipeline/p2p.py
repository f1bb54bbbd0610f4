"""Point-to-point transfers over torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store as Store
from torch.distributed.elastic.multiprocessing.errors import record as record

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.transport import Work

LINK_CTAS = 4
"""Thread blocks, of the 100 or so of a device, that one transfer of a link may hold."""


class LostPeerWork:
    """A transfer whose failure is told as the loss of a neighbour."""

    def __init__(self, work: Work, peer: str) -> None:
        self._work = work
        self._peer = peer

    def wait(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise PeerLostError(f"lost {self._peer}: {first_line(error)}") from error


class PairTransport:
    """Point-to-point transfers with one neighbour, in a group of these two ranks."""

    def __init__(self, group: dist.ProcessGroup, peer_in_group: int, peer: str) -> None:
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
            target.numpy().fill(value)  # a third of what fill_ takes
        else:
            target.fill_(value)

    def _issue(self, operation: Callable[[list[Tensor], int, int], Work], tensor: Tensor) -> Work:
        # What dist.isend and dist.irecv come to, without what they check of any caller.
        try:
            work = operation([tensor], self._peer_in_group, 0)
        except RuntimeError as error:
            raise PeerLostError(f"lost {self._peer}: {first_line(error)}") from error
        return LostPeerWork(work, self._peer)


def link_options(timeout: timedelta) -> dist.ProcessGroupNCCL.Options:
    """How NCCL carries a link: on few thread blocks, ahead of kernels that wait for a place.

    A transfer whose peer is not there yet spins on the thread blocks that it holds.
    """
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = LINK_CTAS
    options._timeout = timeout
    return options


def warm_up(transport: PairTransport, sends: bool, device: Device) -> None:
    """Uses a link once: the first transfer sets up the connection and may block."""
    byte = torch.zeros(1, dtype=torch.uint8, device=device.torch_device)
    (transport.isend(byte) if sends else transport.irecv(byte)).wait()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
