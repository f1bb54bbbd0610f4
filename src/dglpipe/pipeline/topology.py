"""Which process runs which stages of which replica: frozen and pure.

World size W = P x R. Rank = replica x P + process, so that a chain occupies neighbouring
ranks, and with them neighbouring devices of a node.

| placement | stages of process p | for |
|---|---|---|
| chain | its share of consecutive ones | local learning, backprop in one process |
| line | p | pipelined backprop by gpipe, 1f1b |
| loop | p, p + P, p + 2P, ... | interleaved_1f1b |
| v | p, 2P - 1 - p | zbv |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dglpipe.config import (
    PLACEMENTS,
    AsyncConfig,
    BackpropConfig,
    MethodConfig,
    PipelineConfig,
)
from dglpipe.data.batch_schedule import spread
from dglpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers that hold for every process of a run."""

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
    def stages(self) -> Sequence[int]:
        """The stages of this process, rising."""
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
        """Processes of stage 0 among the `local` ones of this machine, of which this is the
        one `local_rank`; at least 1."""
        first = self.rank - local_rank
        ranks = range(first, first + local)
        return max(1, sum(self.layout.at(rank).is_first for rank in ranks))

    def peers(self) -> list[int]:
        """The ranks that run the same stages in the other replicas, and this one."""
        step = self.layout.processes
        return [replica * step + self.process for replica in range(self.layout.replicas)]

    def name(self) -> str:
        """How logs and errors speak of this process."""
        stages = self.stages
        span = f"stage {stages[0]}"
        if len(stages) > 1:
            span = f"stages {stages[0]}-{stages[-1]}"
            if self.layout.is_pipelined:
                span = f"stages {', '.join(map(str, stages))}"
        replica = f" of replica {self.replica}" if self.layout.replicas > 1 else ""
        return f"rank {self.rank} ({span}{replica})"


def plan_layout(
    pipeline: PipelineConfig,
    method: MethodConfig,
    cores: int,
    world_size: int | None = None,
    local: int | None = None,
) -> Layout:
    """Fills in what the configuration leaves open.

    Args:
        method: backprop has one stage unless it is told otherwise, and places several in its
            own ways.
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
    placement = "chain"
    if isinstance(method, BackpropConfig):
        stages, processes, placement = _plan_backprop(pipeline, method, given)
    else:
        stages = pipeline.stages or given or 2
        processes = pipeline.processes or given or stages
    if isinstance(method, AsyncConfig):
        processes = _plan_async(pipeline, method, given, stages)
    if processes > stages:
        hint = "Raise pipeline.stages or start fewer processes"
        raise ConfigError("pipeline.processes", processes, f"1 to {stages}, the stages", hint)
    if world_size is not None and processes * replicas != world_size:
        allowed = f"world size {world_size} / replicas {replicas} = {given}"
        hint = f"Start {processes * replicas} processes or leave the key out"
        raise ConfigError("pipeline.processes", processes, allowed, hint)
    threads = pipeline.threads or max(1, cores // (local or processes * replicas))
    return Layout(stages, processes, replicas, threads, placement)


def _plan_async(
    pipeline: PipelineConfig, method: AsyncConfig, given: int | None, stages: int
) -> int:
    """P: one process that plays all stages, or one for each."""
    method.check_stages(stages)
    if pipeline.replicas > 1:
        hint = "Replicas average their gradients in every step, and these stages have no common one"
        raise ConfigError("pipeline.replicas", pipeline.replicas, "1 with method=dgl_async", hint)
    wanted = 1 if method.simulate else stages
    got = pipeline.processes or given or wanted
    if got != wanted:
        one = "One process plays all stages in a simulation"
        hint = one if method.simulate else "Every stage learns at its own pace, in its own process"
        raise ConfigError("pipeline.processes", got, str(wanted), hint)
    return wanted


def _plan_backprop(
    pipeline: PipelineConfig, method: BackpropConfig, given: int | None
) -> tuple[int, int, str]:
    """(K, P, placement): one process, or a pipeline of stages."""
    several = method.schedule is not None or (pipeline.processes or given or 1) > 1
    schedule = method.schedule or "1f1b"
    placement = PLACEMENTS[schedule]
    each = 1 if placement == "line" else 2
    default = each * (pipeline.processes or given or 2) if several else 1
    stages = pipeline.stages or default
    if stages == 1:
        if method.schedule is not None:
            hint = "One stage is trained by plain backprop, without micro-batches"
            raise ConfigError("method.schedule", schedule, "null for one stage", hint)
        return 1, pipeline.processes or given or 1, "chain"
    processes = pipeline.processes or given or max(1, stages // each)
    if pipeline.replicas > 1:
        hint = "Replicas of a whole network have pipeline.stages=1"
        raise ConfigError("pipeline.replicas", pipeline.replicas, "1 for a pipeline", hint)
    if placement == "line":
        fits, rule = stages == processes, "one stage a process"
    elif placement == "v":
        fits, rule = stages == 2 * processes, "two stages a process"
    else:
        fits = stages % processes == 0 and stages > processes
        rule = "the same number of stages a process, two or more"
    if processes == 1 or not fits:
        got = f"{stages} stages on {processes} process" + "es" * (processes > 1)
        allowed = f"{rule} with method.schedule={schedule}, on two processes or more"
        raise ConfigError("pipeline.stages", got, allowed)
    return stages, processes, placement
