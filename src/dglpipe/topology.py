"""Which process runs which stages of which replica: frozen and pure.

World size W = P x R. Rank = replica x P + process, so that a chain occupies neighbouring
ranks, and with them neighbouring devices of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config import PipelineConfig
from dglpipe.errors import ConfigError


def spread(count: int, parts: int) -> list[int]:
    """Sizes of `parts` shares of `count` that differ by at most 1, the larger first."""
    small, larger = divmod(count, parts)
    return [small + 1] * larger + [small] * (parts - larger)


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers that hold for every process of a run."""

    stages: int
    processes: int
    replicas: int
    threads: int

    @property
    def world_size(self) -> int:
        return self.processes * self.replicas

    def at(self, rank: int) -> Topology:
        """The place of `rank` in the layout."""
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
    def stages(self) -> range:
        """The consecutive stages of this process."""
        sizes = spread(self.layout.stages, self.layout.processes)
        first = sum(sizes[: self.process])
        return range(first, first + sizes[self.process])

    @property
    def is_first(self) -> bool:
        return self.process == 0

    @property
    def is_last(self) -> bool:
        return self.process == self.layout.processes - 1

    def peers(self) -> list[int]:
        """The ranks that run the same stages in the other replicas, and this one."""
        step = self.layout.processes
        return [replica * step + self.process for replica in range(self.layout.replicas)]

    def name(self) -> str:
        """How logs and errors speak of this process."""
        stages = self.stages
        one = len(stages) == 1
        span = f"stage {stages[0]}" if one else f"stages {stages[0]}-{stages[-1]}"
        replica = f" of replica {self.replica}" if self.layout.replicas > 1 else ""
        return f"rank {self.rank} ({span}{replica})"


def plan_layout(
    pipeline: PipelineConfig, cores: int, world_size: int | None = None, local: int | None = None
) -> Layout:
    """Fills in what the configuration leaves open.

    Args:
        cores: cores of this machine, for the default number of threads.
        world_size: number of processes of an outside launcher; None: ours to choose.
        local: how many of them are on this machine; None: all.

    Raises:
        ConfigError: more processes than stages, or a world size that is not P x R.
    """
    replicas = pipeline.replicas
    if world_size is not None and world_size % replicas:
        raise ConfigError(
            "pipeline.replicas", replicas, f"a divisor of the world size, {world_size}"
        )
    given = world_size // replicas if world_size is not None else None
    stages = pipeline.stages or given or 2
    processes = pipeline.processes or given or stages
    if processes > stages:
        hint = "Raise pipeline.stages or start fewer processes"
        raise ConfigError("pipeline.processes", processes, f"1 to {stages}, the stages", hint)
    if world_size is not None and processes * replicas != world_size:
        allowed = f"world size {world_size} / replicas {replicas} = {given}"
        hint = f"Start {processes * replicas} processes or leave the key out"
        raise ConfigError("pipeline.processes", processes, allowed, hint)
    threads = pipeline.threads or max(1, cores // (local or processes * replicas))
    return Layout(stages=stages, processes=processes, replicas=replicas, threads=threads)
