"""How fast a run can be where links cost nothing, and what holds it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from dglpipe.partition.estimate import StageEstimate
from dglpipe.partition.stage_method import ScheduledMethod
from dglpipe.pipeline.topology import Layout

LOADER, CORES = "loader", "cores"


@dataclass(frozen=True, slots=True)
class LoaderEstimate:
    """What makes the batches, as a stage in front of the first.

    Attributes:
        output_shape: of an image.
        seconds_per_step: in which the loader of a replica makes a batch, while those of the
            other replicas make theirs; None where it has not been measured.
        workers: its processes; 0: batches are made by the process of stage 0, which meanwhile
            computes nothing. None as above.
    """

    output_shape: tuple[int, ...]
    seconds_per_step: float | None = None
    workers: int | None = None

    def beside(self, node: Node, replicas: int) -> LoaderEstimate:
        """The same where `replicas` of them share a machine, each measured alone.

        Decoders are taken to be busy all the time; what has no workers slows its own process only.
        """
        if not self.seconds_per_step or not self.workers:
            return self
        crowd = max(1.0, replicas * min(self.workers, node.cores) / node.cores)
        return replace(self, seconds_per_step=self.seconds_per_step * crowd)


@dataclass(frozen=True, slots=True)
class Node:
    """The machine that all processes share.

    Attributes:
        computes: whether stages compute on its cores.
    """

    cores: int
    computes: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take, and how fast it can be.

    Attributes:
        rows: of a step on one replica.
        speed_up: of the processes over one process for all stages, with as many replicas: in
            seconds where they have been measured, else in FLOPs, every process then with cores
            of its own and images that cost nothing.
        samples_per_second: of all replicas; None where seconds have not been measured.
        bottleneck: what takes longest: `stage 1`, `stages 0-2`, `loader`, or `cores` where all
            that is computed is too much for those of the machine.
    """

    stages: tuple[StageEstimate, ...]
    rows: int
    speed_up: float
    samples_per_second: float | None
    loader: LoaderEstimate
    bottleneck: str


def predict(
    stages: Sequence[StageEstimate],
    rows: int,
    layout: Layout,
    method: ScheduledMethod,
    loader: LoaderEstimate | None = None,
    node: Node | None = None,
) -> Plan:
    """The plan of `stages` on the processes of `layout`.

    Args:
        loader: of one replica, measured alone where it has been measured.
        node: None: every process has cores of its own.
    """
    loader = loader or LoaderEstimate(())
    timed = stages[0].seconds_per_step is not None
    if node is not None:
        loader = loader.beside(node, layout.replicas)
    rounds = _rounds(stages, method)
    alone = replace(layout, processes=1, placement="chain")
    limits = [_longest(_limits(work, layout, method, loader, node)) for work in rounds]
    before = [_longest(_limits(work, alone, method, loader, node)) for work in rounds]
    seconds = sum(limit[0] for limit in limits)
    images = len(rounds) * rows * layout.replicas
    return Plan(
        stages=tuple(stages),
        rows=rows,
        speed_up=sum(limit[0] for limit in before) / (seconds or 1.0),
        samples_per_second=images / seconds if timed and seconds else None,
        loader=loader,
        bottleneck=_longest(limits)[1],
    )


def _longest(limits: Sequence[tuple[float, str]]) -> tuple[float, str]:
    return max(limits, key=itemgetter(0))


def _rounds(stages: Sequence[StageEstimate], method: ScheduledMethod) -> list[list[float]]:
    """Work of every stage in a step: seconds, or FLOPs; of sequential learning in each round."""
    work = [stage.seconds_per_step or float(stage.flops_per_sample) for stage in stages]
    if not method.trains_in_rounds:
        return [work]
    frozen = [one * _forward(stage) for one, stage in zip(work, stages, strict=True)]
    return [
        [*frozen[:round_], work[round_], *[0.0] * (len(work) - round_ - 1)]
        for round_ in range(len(work))
    ]


def _forward(stage: StageEstimate) -> float:
    """Share of a step that is forward without the head: the gradients of the weights and of
    what they read cost as much each."""
    own = stage.flops_per_sample - stage.head_flops_per_sample
    return own / 3 / max(stage.flops_per_sample, 1)


def _limits(
    work: Sequence[float],
    layout: Layout,
    method: ScheduledMethod,
    loader: LoaderEstimate,
    node: Node | None,
) -> list[tuple[float, str]]:
    """How long a step takes at least, and what takes so long."""
    loading, workers = loader.seconds_per_step or 0.0, loader.workers or 0
    limits = []
    for process in range(layout.processes):
        own = layout.at(process).stages
        learning = sum(work[j] for j in own) / method.utilization(layout)
        # Without workers the process of stage 0 makes a batch, then learns from it.
        feeding = loading if 0 in own and not workers else 0.0
        limits.append((feeding + learning, LOADER if feeding > learning else _name(own)))
    if workers:
        limits.append((loading, LOADER))
    if node is not None:
        limits.append((_crowded(sum(work), layout, loader, node), CORES))
    return limits


def _crowded(work: float, layout: Layout, loader: LoaderEstimate, node: Node) -> float:
    """Seconds of a step if all cores of the machine had something to do all the time."""
    loading, workers = loader.seconds_per_step or 0.0, loader.workers or 0
    threads = min(layout.threads, node.cores)
    busy = (work + (0.0 if workers else loading)) * threads if node.computes else 0.0
    # In the time that decoders share, they have at most all cores.
    decoding = min(layout.replicas * workers, node.cores) * loading
    return (layout.replicas * busy + decoding) / node.cores


def _name(stages: Sequence[int]) -> str:
    if len(stages) == 1:
        return f"stage {stages[0]}"
    if stages[-1] - stages[0] == len(stages) - 1:
        return f"stages {stages[0]}-{stages[-1]}"
    return f"stages {', '.join(map(str, stages))}"
