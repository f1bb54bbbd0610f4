"""The processes of a run: rendezvous, links, replicas. The facade of torch.distributed.

Every operation has a meaning for a single process, so that P = 1 needs no case of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import Store as Store
from torch.distributed.elastic.multiprocessing.errors import record as record
from torch.distributed.rendezvous import rendezvous as meet
from torch.nn.parallel import DistributedDataParallel

from dglpipe.config import LinkConfig
from dglpipe.errors import PeerLostError
from dglpipe.pipeline.checked_transport import CheckedTransport
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.emulated_transport import EmulatedTransport
from dglpipe.pipeline.p2p import (
    PairTransport,
    first_line,
    link_options,
    warm_up,
)
from dglpipe.pipeline.topology import Topology
from dglpipe.pipeline.transport import Transport


class ProcessGroup:
    """The place of this process among the others.

    Attributes:
        store: a key-value store that all processes share.
        previous: transport from the process that runs the stages below, None at the first.
        following: transport to the process that runs the stages above, None at the last.
        replicas: group of the processes with the same stages, None without replicas.
        pipeline: group of all processes, where gradients flow back; else None.
    """

    def __init__(self, topology: Topology, store: Store) -> None:
        self.topology = topology
        self.store = store
        self.previous: Transport | None = None
        self.following: Transport | None = None
        self.replicas: dist.ProcessGroup | None = None
        self.pipeline: dist.ProcessGroup | None = None
        self._barriers = 0

    @classmethod
    def alone(cls, topology: Topology) -> ProcessGroup:
        """A single process without rendezvous."""
        return cls(topology, HashStore())

    @classmethod
    def store_only(cls, topology: Topology, store: Store) -> ProcessGroup:
        """The processes before they are connected: they can exchange words, but no tensors."""
        return cls(topology, PrefixStore("store_only", store))

    @classmethod
    def connect(
        cls,
        topology: Topology,
        device: Device,
        store: Store,
        timeout_s: float,
        checked: bool = False,
        link: LinkConfig | None = None,
    ) -> ProcessGroup:
        """Meets the other processes and builds the group of every link.

        Args:
            store: from `rendezvous`.
            checked: whether the links look for misuse of buffers.
            link: how slow they are; None: as fast as they can be.

        Raises:
            PeerLostError: another process went away meanwhile.
        """
        timeout = timedelta(seconds=timeout_s)
        try:
            dist.init_process_group(
                "gloo",
                store=PrefixStore("torch", store),
                rank=topology.rank,
                world_size=topology.layout.world_size,
                timeout=timeout,
            )
            group = cls(topology, PrefixStore("dglpipe", store))
            group._connect_links(device, timeout, checked, link or LinkConfig())
            group._connect_replicas(device, timeout)
            if topology.layout.is_pipelined:
                everyone = list(range(topology.layout.world_size))
                group.pipeline = group._new_group(everyone, device, timeout)
        except RuntimeError as error:
            raise PeerLostError(f"could not meet the other processes: {error}") from error
        return group

    def _new_group(
        self, ranks: list[int], device: Device, timeout: timedelta, link: bool = False
    ) -> Any:
        """A group of `ranks`; every rank has to call this for every group, in one order.

        NCCL connects it here and not at its first transfer, so that a device that cannot be
        reached shows before the first step. All ranks go through the groups in one order, and
        only the members of a group wait for each other, so nobody waits in a circle.
        """
        options, where = None, None
        if device.backend == "nccl":
            where = device.torch_device
            options = link_options(timeout) if link else None
        return dist.new_group(
            ranks, timeout=timeout, backend=device.backend, pg_options=options, device_id=where
        )

    def _connect_links(
        self, device: Device, timeout: timedelta, checked: bool, link: LinkConfig
    ) -> None:
        """Makes a group of two ranks for each link; every rank makes all, in one order."""
        layout = self.topology.layout
        for lower in range(layout.world_size):
            if layout.at(lower).is_last:
                continue
            pair = [lower, lower + 1]
            group = self._new_group(pair, device, timeout, link=True)
            if self.topology.rank == lower:
                self.following = self._transport(group, 1, lower + 1, device, checked, link)
            elif self.topology.rank == lower + 1:
                self.previous = self._transport(group, 0, lower, device, checked, link)

    def _transport(
        self,
        group: dist.ProcessGroup,
        place: int,
        rank: int,
        device: Device,
        checked: bool,
        link: LinkConfig,
    ) -> Transport:
        pair = PairTransport(group, place, self.topology.layout.at(rank).name())
        sends = place == 1
        warm_up(pair, sends, device)
        transport: Transport = pair
        if link.is_emulated and sends:
            transport = EmulatedTransport(transport, link.delay, link.rate, until_arrival=True)
        return CheckedTransport(transport) if checked else transport

    def _connect_replicas(self, device: Device, timeout: timedelta) -> None:
        layout = self.topology.layout
        if layout.replicas == 1:
            return
        for process in range(layout.processes):
            ranks = layout.at(process).peers()
            group = self._new_group(ranks, device, timeout)
            if process == self.topology.process:
                self.replicas = group

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module`, averaging its gradients over the replicas in every backward."""
        if self.replicas is None:
            return module
        return DistributedDataParallel(
            module,
            process_group=self.replicas,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces floating-point `tensors` by their mean over the replicas."""
        if self.replicas is None:
            return
        with translate_peer_loss():
            for tensor in tensors:
                if tensor.is_floating_point():
                    dist.all_reduce(tensor, group=self.replicas)
                    tensor /= self.topology.layout.replicas

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes of a pipeline."""
        dist.all_reduce(value, group=self.pipeline)
        return value

    def exchange(self, key: str, value: str) -> list[str]:
        """What every rank said under `key`, by rank."""
        self.store.set(f"{key}/{self.topology.rank}", value)
        size = self.topology.layout.world_size
        try:
            return [self.store.get(f"{key}/{rank}").decode() for rank in range(size)]
        except RuntimeError as error:
            raise PeerLostError(f"no word from another process: {error}") from error

    def wait_for_departure(self, key: str) -> None:
        """Rank 0 returns when every process has come here, the others at once: rank 0 may be
        the one that holds the store, and they may have to read it before they leave."""
        self.store.set(f"{key}/off/{self.topology.rank}", "")
        if self.topology.rank == 0:
            for rank in range(self.topology.layout.world_size):
                self.store.get(f"{key}/off/{rank}")

    def barrier(self) -> None:
        """Returns when every process has come here."""
        self._barriers += 1
        self.exchange(f"barrier{self._barriers}", "")

    def close(self) -> None:
        """The clean way out, after all transfers: it waits for every other process, so it
        is not for failures."""
        self.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.wait_for_departure("close")


@contextlib.contextmanager
def translate_peer_loss() -> Iterator[None]:
    """Tells errors of the transport as the loss of another process. Replicas meet in the
    middle of a backward, where nobody else would know them from errors of the computation."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise PeerLostError(f"lost another process: {first_line(error)}") from error


def rendezvous(
    timeout_s: float, init_method: str = "env://", rank: int = -1, size: int = -1
) -> Store:
    """The store in which the processes of a run meet; once a process.

    Args:
        init_method: `env://` under a launcher, or `file://PATH` with `rank` and `size`.
    """
    store: Store
    store, _, _ = next(meet(init_method, rank, size))
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
