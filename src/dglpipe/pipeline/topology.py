"""Assignment of replicas and stages to processes: frozen and pure.

World size W = P x R. Rank = replica x P + process, so that a chain occupies neighbouring
ranks, and with them neighbouring devices of a node.

| placement | stages of process p | for |
|---|---|---|
| chain | consecutive stages | local learning, backprop in one process |
| line | p | pipelined backprop by gpipe, 1f1b |
| loop | p, p + P, p + 2P, ... | interleaved_1f1b |
| v | p, 2P - 1 - p | zbv |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dglpipe.data.batch_schedule import spread


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers of stages, processes, replicas and threads of a run."""

    stages: int
    processes: int
    replicas: int
    threads: int
    placement: str = "chain"

    @property
    def is_pipelined(self) -> bool:
        """Whether gradients flow back from process to process."""
        return self.placement != "chain"

    @property
    def world_size(self) -> int:
        return self.processes * self.replicas

    def at(self, rank: int) -> Topology:
        """Stages, replica and neighbours of `rank`."""
        return Topology(self, rank)


@dataclass(frozen=True, slots=True)
class Topology:
    """One process: its stages, its replica, its neighbours."""

    layout: Layout
    rank: int

    @property
    def process(self) -> int:
        """Position in the chain of processes, 0..P-1."""
        return self.rank % self.layout.processes

    @property
    def replica(self) -> int:
        return self.rank // self.layout.processes

    @property
    def stages(self) -> Sequence[int]:
        """The stages of this process, in ascending order."""
        count, processes = self.layout.stages, self.layout.processes
        if self.layout.placement == "v":
            return self.process, count - 1 - self.process
        if self.layout.is_pipelined:
            return range(self.process, count, processes)
        sizes = spread(count, processes)
        first = sum(sizes[: self.process])
        return range(first, first + sizes[self.process])

    @property
    def is_first(self) -> bool:
        return self.process == 0

    @property
    def is_last(self) -> bool:
        return self.process == self.layout.processes - 1

    def loaders(self, local_rank: int, local: int) -> int:
        """Number of processes that run stage 0 on this machine; at least 1.

        Args:
            local_rank: number of this process on this machine.
            local: number of processes on this machine.
        """
        first = self.rank - local_rank
        ranks = range(first, first + local)
        return max(1, sum(self.layout.at(rank).is_first for rank in ranks))

    def peers(self) -> list[int]:
        """The ranks that run the same stages in all replicas, including this rank."""
        step = self.layout.processes
        return [replica * step + self.process for replica in range(self.layout.replicas)]

    def name(self) -> str:
        """The name of this process in logs and error messages: rank, stages, replica."""
        stages = self.stages
        span = f"stage {stages[0]}"
        if len(stages) > 1:
            span = f"stages {stages[0]}-{stages[-1]}"
            if self.layout.is_pipelined:
                span = f"stages {', '.join(map(str, stages))}"
        replica = f" of replica {self.replica}" if self.layout.replicas > 1 else ""
        return f"rank {self.rank} ({span}{replica})"
