"""Predicted throughput of a run and its bottleneck, without the cost of the links."""

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
    """The loader of one replica, as a stage before stage 0.

    Attributes:
        output_shape: shape of one image.
        seconds_per_step: time to load a batch while the loaders of the other replicas also work;
            None: not measured.
        workers: number of loader processes; 0: the process of stage 0 loads the batches and does
            not compute at the same time; None: the time was not measured.
    """

    output_shape: tuple[int, ...]
    seconds_per_step: float | None = None
    workers: int | None = None

    def sharing(self, node: Node, replicas: int) -> LoaderEstimate:
        """The estimate for this loader, measured alone, if all replicas load on one machine.

        Assumes that loader processes are always busy. A loader without loader processes slows
        down only the process of stage 0.
        """
        if not self.seconds_per_step or not self.workers:
            return self
        slowdown = max(1.0, replicas * min(self.workers, node.cores) / node.cores)
        return replace(self, seconds_per_step=self.seconds_per_step * slowdown)


@dataclass(frozen=True, slots=True)
class Node:
    """The machine that all processes share.

    Attributes:
        cores: CPU cores.
        computes: whether the stages compute on these cores.
    """

    cores: int
    computes: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Predicted cost and throughput of a run.

    Attributes:
        rows: rows per step on one replica.
        speed_up: speed-up over one process for all stages, with the same number of replicas.
            Computed from seconds if measured; else from FLOPs, with separate cores for every
            process and without the cost of images.
        samples_per_second: rate of all replicas together; None: seconds were not measured.
        bottleneck: `stage 1`, `stages 0-2`, `loader`, or `cores` if the machine has too few cores
            for all processes together.
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
    """Predicts the throughput of `stages` on the processes of `layout`.

    Args:
        loader: loader of one replica, measured alone, or not measured.
        node: the machine; None: every process has separate cores.
    """
    loader = loader or LoaderEstimate(())
    timed = stages[0].seconds_per_step is not None
    if node is not None:
        loader = loader.sharing(node, layout.replicas)
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
    """Cost per step by round and stage, in seconds or FLOPs."""
    work = [stage.seconds_per_step or float(stage.flops_per_sample) for stage in stages]
    if not method.trains_in_rounds:
        return [work]
    frozen = [one * _forward(stage) for one, stage in zip(work, stages, strict=True)]
    return [
        [*frozen[:round_], work[round_], *[0.0] * (len(work) - round_ - 1)]
        for round_ in range(len(work))
    ]


def _forward(stage: StageEstimate) -> float:
    """Fraction of a step that the forward without auxiliary modules takes. The gradients of weights
    and of inputs each cost as much as the forward."""
    own = stage.flops_per_sample - stage.head_flops_per_sample
    return own / 3 / max(stage.flops_per_sample, 1)


def _limits(
    work: Sequence[float],
    layout: Layout,
    method: ScheduledMethod,
    loader: LoaderEstimate,
    node: Node | None,
) -> list[tuple[float, str]]:
    """Lower bounds of the duration of a step, each with its cause."""
    loading, workers = loader.seconds_per_step or 0.0, loader.workers or 0
    limits = []
    for process in range(layout.processes):
        own = layout.at(process).stages
        learning = sum(work[j] for j in own) / method.utilization(layout)
        # Without loader processes, the process of stage 0 loads a batch, then trains on it.
        loading_here = loading if 0 in own and not workers else 0.0
        limits.append((loading_here + learning, LOADER if loading_here > learning else _name(own)))
    if workers:
        limits.append((loading, LOADER))
    if node is not None:
        limits.append((_core_seconds(sum(work), layout, loader, node), CORES))
    return limits


def _core_seconds(work: float, layout: Layout, loader: LoaderEstimate, node: Node) -> float:
    """Lower bound of the seconds per step: all cores of the machine are always busy."""
    loading, workers = loader.seconds_per_step or 0.0, loader.workers or 0
    threads = min(layout.threads, node.cores)
    busy = (work + (0.0 if workers else loading)) * threads if node.computes else 0.0
    decoding = min(layout.replicas * workers, node.cores) * loading
    return (layout.replicas * busy + decoding) / node.cores


def _name(stages: Sequence[int]) -> str:
    if len(stages) == 1:
        return f"stage {stages[0]}"
    if stages[-1] - stages[0] == len(stages) - 1:
        return f"stages {stages[0]}-{stages[-1]}"
    return f"stages {', '.join(map(str, stages))}"
