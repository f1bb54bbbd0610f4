"""The process group of a run: links and replicas.

This module is the facade of torch.distributed. Every operation also works for a single process,
so that P = 1 needs no special case.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.multiprocessing.errors import record as record
from torch.nn.parallel import DistributedDataParallel

from dglpipe.config import LinkConfig
from dglpipe.errors import PeerLostError
from dglpipe.pipeline.checked_transport import CheckedTransport
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.emulated_transport import EmulatedTransport
from dglpipe.pipeline.message import Direction
from dglpipe.pipeline.p2p import PairGroup, PairTransport, first_line, link_options, warm_up
from dglpipe.pipeline.stage_links import Relink, StageLinks
from dglpipe.pipeline.stores import PrefixStore, Store
from dglpipe.pipeline.topology import Topology
from dglpipe.pipeline.transport import Transport

logger = logging.getLogger("dglpipe")


class ProcessGroup:
    """Communication of this process with the other processes of the run.

    Attributes:
        store: key-value store that all processes share.
        previous: transport to the process of the stages below; None at the first process.
        following: transport to the process of the stages above; None at the last process.
        from_above: transport of the messages that come down from there; None without such messages.
        to_below: transport of messages down to the process of the stages below.
        replicas: group of the processes with the same stages; None without replicas.
        pipeline: group of all processes, for methods with backward links; else None.
        links: links of stages that can be started again; None: the stages end together.
    """

    def __init__(self, topology: Topology, store: Store) -> None:
        self.topology = topology
        self.store = store
        self.previous: Transport | None = None
        self.following: Transport | None = None
        self.from_above: Transport | None = None
        self.to_below: Transport | None = None
        self.replicas: dist.ProcessGroup | None = None
        self.pipeline: dist.ProcessGroup | None = None
        self.links: StageLinks | None = None
        self.relink_previous: Relink | None = None
        self.relink_following: Relink | None = None
        self._barriers = 0

    @property
    def generation(self) -> int:
        """Number of processes that this rank has had before, if its stage can be started again."""
        return 0 if self.links is None else self.links.generation

    @classmethod
    def alone(cls, topology: Topology) -> ProcessGroup:
        """A group of a single process, without rendezvous."""
        return cls(topology, HashStore())

    @classmethod
    def store_only(cls, topology: Topology, store: Store) -> ProcessGroup:
        """A group that exchanges text through `store`, and no tensors."""
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
        both_ways: bool = False,
    ) -> ProcessGroup:
        """Connects the processes and creates the group of every link.

        Args:
            store: from `rendezvous`.
            timeout_s: timeout of every transfer, in seconds.
            checked: whether the links detect misuse of buffers.
            link: emulated bandwidth and latency; None: no emulation.
            both_ways: whether messages also go down the chain. They have groups of their own: in a
                common queue, two processes could wait for each other.

        Raises:
            PeerLostError: another process exited.
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
            if both_ways:
                group._connect_links(device, timeout, checked, link or LinkConfig(), Direction.DOWN)
            group._connect_replicas(device, timeout)
            if topology.layout.is_pipelined:
                everyone = list(range(topology.layout.world_size))
                group.pipeline = group._new_group(everyone, device, timeout)
        except RuntimeError as error:
            raise PeerLostError(f"cannot connect to the other processes: {error}") from error
        return group

    @classmethod
    def connect_stage(
        cls,
        topology: Topology,
        device: Device,
        store: Store,
        timeout_s: float,
        generation: int,
        checked: bool = False,
        link: LinkConfig | None = None,
    ) -> ProcessGroup:
        """Connects one stage with its neighbours. There is no group of all processes, which a stage
        that is started again could not join.

        Args:
            generation: number of processes that the stage has had before.

        Raises:
            PeerLostError, RejoinError: see `StageLinks.meet`.
        """
        group = cls(topology, PrefixStore("dglpipe", store))
        stage, layout = topology.process, topology.layout
        links = group.links = StageLinks(stage, generation, PrefixStore("links", store), timeout_s)

        def connect(other: int, meet: Callable[[], PairGroup]) -> Transport:
            while True:
                pair = meet()
                with contextlib.suppress(PeerLostError):  # The neighbour has ended again.
                    place, own_link = int(other > stage), link or LinkConfig()
                    return group._transport(
                        pair, place, other, device, checked, own_link, sends=other > stage
                    )

        def relink(other: int) -> Relink:
            def again(error: PeerLostError, since: float) -> Transport:
                lost = time.monotonic()
                transport = connect(other, lambda: links.meet_again(other, error, since))
                gone = time.monotonic() - lost
                logger.info("stage %d: stage %d is back after %.1f s", stage, other, gone)
                return transport

            return again

        if stage > 0:
            group.previous = connect(stage - 1, lambda: links.meet(stage - 1))
            group.relink_previous = relink(stage - 1)
        if stage < layout.processes - 1:
            group.following = connect(stage + 1, lambda: links.meet(stage + 1))
            group.relink_following = relink(stage + 1)
        return group

    def _new_group(
        self, ranks: list[int], device: Device, timeout: timedelta, link: bool = False
    ) -> Any:
        """Creates a group of `ranks`. Every rank calls this for every group, in the same order.

        NCCL connects the group here instead of at the first transfer, so that an unreachable
        device fails before the first step. Only the members of a group wait for each other, and
        all ranks create the groups in the same order, so group creation cannot deadlock.
        """
        options, device_id = None, None
        if device.backend == "nccl":
            device_id = device.torch_device
            options = link_options(timeout) if link else None
        return dist.new_group(
            ranks, timeout=timeout, backend=device.backend, pg_options=options, device_id=device_id
        )

    def _connect_links(
        self,
        device: Device,
        timeout: timedelta,
        checked: bool,
        link: LinkConfig,
        direction: Direction = Direction.UP,
    ) -> None:
        """Creates a group of two ranks for each link; every rank creates all groups."""
        layout, up = self.topology.layout, direction is Direction.UP
        for lower in range(layout.world_size):
            if layout.at(lower).is_last:
                continue
            pair = [lower, lower + 1]
            group = self._new_group(pair, device, timeout, link=True)
            if self.topology.rank == lower:
                transport = self._transport(group, 1, lower + 1, device, checked, link, sends=up)
                if up:
                    self.following = transport
                else:
                    self.from_above = transport
            elif self.topology.rank == lower + 1:
                transport = self._transport(group, 0, lower, device, checked, link, sends=not up)
                if up:
                    self.previous = transport
                else:
                    self.to_below = transport

    def _transport(
        self,
        group: PairGroup,
        place: int,
        rank: int,
        device: Device,
        checked: bool,
        link: LinkConfig,
        sends: bool,
    ) -> Transport:
        pair = PairTransport(group, place, self.topology.layout.at(rank).name())
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
        """Wraps `module` so that every backward averages its gradients over the replicas."""
        if self.replicas is None:
            return module
        return DistributedDataParallel(
            module,
            process_group=self.replicas,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the floating-point `tensors` by their mean over the replicas, in place."""
        if self.replicas is None:
            return
        with translate_peer_loss():
            for tensor in tensors:
                if tensor.is_floating_point():
                    dist.all_reduce(tensor, group=self.replicas)
                    tensor /= self.topology.layout.replicas

    def total(self, value: Tensor) -> Tensor:
        """Sums `value` over the processes of a pipeline, in place."""
        dist.all_reduce(value, group=self.pipeline)
        return value

    def exchange(self, key: str, value: str) -> list[str]:
        """Publishes `value` under `key` and returns the values of all ranks, by rank.

        Raises:
            PeerLostError: another process does not publish a value in time.
        """
        self.store.set(f"{key}/{self.topology.rank}", value)
        size = self.topology.layout.world_size
        try:
            return [self.store.get(f"{key}/{rank}").decode() for rank in range(size)]
        except RuntimeError as error:
            raise PeerLostError(f"no answer from another process: {error}") from error

    def wait_for_departure(self, key: str) -> None:
        """Returns at rank 0 after all processes have called this, and at other ranks at once.

        Rank 0 may host the store, and the other processes may still read from the store.
        """
        self.store.set(f"{key}/off/{self.topology.rank}", "")
        if self.topology.rank == 0:
            for rank in range(self.topology.layout.world_size):
                self.store.get(f"{key}/off/{rank}")

    def wait_for_rank_0(self, key: str) -> None:
        """Returns after rank 0 has called this; at rank 0, after all have seen it.

        Raises:
            PeerLostError: another process does not call this in time.
        """
        try:
            if self.topology.rank == 0:
                self.store.set(key, "")
            else:
                self.store.get(key)
            self.wait_for_departure(key)
        except RuntimeError as error:
            raise PeerLostError(f"no answer from another process: {error}") from error

    def barrier(self) -> None:
        """Returns after all processes have called this."""
        self._barriers += 1
        self.exchange(f"barrier{self._barriers}", "")

    def close(self) -> None:
        """Closes the group after all transfers, and waits for all processes.

        Do not call after a failure: a failed process never calls `close`.
        """
        self.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.wait_for_departure("close")


@contextlib.contextmanager
def translate_peer_loss() -> Iterator[None]:
    """Translates errors of torch.distributed to PeerLostError.

    Replicas communicate during backward, where these errors would otherwise look like errors of
    the computation.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise PeerLostError(f"lost another process: {first_line(error)}") from error
