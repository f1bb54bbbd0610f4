"""Emulated slow links for the messages of `torch.distributed.pipelining`."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.pipelining import schedules

from dglpipe.pipeline.emulated_transport import EmulatedLine
from dglpipe.pipeline.transport import Work


def slow_down(latency: float, rate: float) -> None:
    """Delays the messages that this process sends, by neighbour.

    Args:
        latency: seconds.
        rate: bytes a second.
    """
    lines: dict[int, EmulatedLine] = {}

    def batch(ops: list[dist.P2POp], desc: str | None = None) -> list[Work]:
        del desc
        return [issue(one) for one in ops]

    def issue(one: dist.P2POp) -> Work:
        if one.op is dist.irecv:
            work = dist.irecv(one.tensor, group=one.group, tag=one.tag, group_src=one.group_peer)
            assert work is not None
            return work
        own = one.tensor.detach().clone()
        if one.group_peer not in lines:
            lines[one.group_peer] = EmulatedLine(latency, rate)
        return lines[one.group_peer].send(
            own.nbytes,
            lambda: dist.isend(own, group=one.group, tag=one.tag, group_dst=one.group_peer),
        )

    schedules._batch_p2p = batch  # type: ignore[assignment]
