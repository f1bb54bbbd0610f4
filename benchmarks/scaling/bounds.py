"""Bounds of the ways: only waiting and links take time.

A schedule is simulated: every process does its parts in the schedule's order, each as soon as its
input has arrived. A message leaves after the messages before it, at the link's bandwidth, and
arrives one latency later. Each process has a core at any time, calls cost nothing, and the time of
a stage does not vary, so with `spin` or `jitter` no way can reach its bound.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch.distributed.pipelining import ScheduleZBVZeroBubble

from benchmarks.scaling.case import FORWARD, PIPELINES, Case

STEPS = 4
"""Enough to reach the steady state: a process may start a step before others end theirs."""


class Part(NamedTuple):
    """One action of a schedule."""

    kind: str
    """F: forward, B: backward; I and W: backward to the input and to the weights."""
    stage: int
    microbatch: int


def bound(case: Case) -> float:
    """Largest possible efficiency, links included."""
    return case.ideal / step_seconds(case)


def bound_without_link(case: Case) -> float:
    """Largest possible efficiency with links that cost nothing."""
    return bound(replace(case, latency_ms=0.0, gbit=0.0))


def step_seconds(case: Case) -> float:
    if case.way in PIPELINES:
        return pipeline_seconds(case)
    if case.way == "ddp":
        return replica_seconds(case)
    if case.stages == 1:
        return case.ideal
    # A link carries one message at a time: the sender writes the next after its arrival.
    return max(case.ideal, case.link.delay + case.kib * 1024 / case.link.rate)


def replica_seconds(case: Case) -> float:
    """The buckets of a step in sequence, each after its part of backward."""
    hops = case.hops
    size = case.gradient_kib * 1024 / case.buckets * hops / case.stages
    left = 0.0
    for bucket in range(case.buckets):
        ready = case.mean * (FORWARD + (1 - FORWARD) * (bucket + 1) / case.buckets)
        left = max(left, ready) + size / case.link.rate + hops * case.link.delay
    return left


def pipeline_seconds(case: Case) -> float:
    """Seconds a step of the last process in the steady state."""
    ends = [0.0]
    orders = [order(case, rank) for rank in range(case.stages)]
    simulation = _Simulation(case)
    for step in range(STEPS):
        simulation.run_step(step, orders)
        ends.append(simulation.free[-1])
    return [b - a for a, b in pairwise(ends)][-1]


class _Simulation:
    """When processes are free and messages arrive, in seconds."""

    def __init__(self, case: Case) -> None:
        self.free = [0.0] * case.stages
        self._case = case
        self._whole = case.stages * case.chunks
        self._arrivals: dict[tuple[int, str, int, int], float] = {}
        self._lines: dict[tuple[int, int], float] = {}
        bytes_ = case.kib * 1024 / case.microbatches
        self._transfer = bytes_ / case.link.rate

    def run_step(self, step: int, orders: list[list[Part]]) -> None:
        """Simulates one step of all processes."""
        done = [0] * len(orders)
        before = -1
        while sum(done) > before:
            before = sum(done)
            for rank, parts in enumerate(orders):
                while done[rank] < len(parts) and self._run(step, rank, parts[done[rank]]):
                    done[rank] += 1
        assert before == sum(map(len, orders)), "a schedule waits for a message that is never sent"

    def _run(self, step: int, rank: int, part: Part) -> bool:
        """False if the input of `part` has not arrived."""
        kind = "F" if part.kind == "F" else "B"
        start = self.free[rank]
        if self._has_input(part):
            arrival = self._arrivals.get((step, kind, part.stage, part.microbatch))
            if arrival is None:
                return False
            start = max(start, arrival)
        seconds = self._case.seconds(rank) / self._case.microbatches / self._case.chunks / 3
        self.free[rank] = start + seconds * (2 if part.kind == "B" else 1)
        to = part.stage + (1 if kind == "F" else -1)
        if part.kind != "W" and 0 <= to < self._whole:
            self._arrivals[step, kind, to, part.microbatch] = self._sent(rank, self._process(to))
        return True

    def _has_input(self, part: Part) -> bool:
        """Gradients of weights and the ends of the network need no message."""
        if part.kind == "F":
            return part.stage > 0
        return part.kind != "W" and part.stage < self._whole - 1

    def _sent(self, source: int, target: int) -> float:
        """Arrival time of a message that `source` sends now."""
        now = self.free[source]
        if source == target:
            return now
        left = max(now, self._lines.get((source, target), 0.0)) + self._transfer
        self._lines[source, target] = left
        return left + self._case.link.delay

    def _process(self, stage: int) -> int:
        """Process of a stage: of a chain, or of a V that ends at the first process."""
        return stage if stage < self._case.stages else self._whole - 1 - stage


def order(case: Case, rank: int) -> list[Part]:
    """Actions of a process in a step, in the order of `torch.distributed.pipelining`."""
    m = case.microbatches
    if case.way == "zbv":
        return _zero_bubble(case.stages, m, rank)
    forward = [Part("F", rank, i) for i in range(m)]
    backward = [Part("B", rank, i) for i in range(m)]
    if case.way == "gpipe":
        return forward + backward
    ahead = min(m, case.stages - rank)
    steady = [part for pair in zip(backward, forward[ahead:], strict=False) for part in pair]
    return forward[:ahead] + steady + backward[m - ahead :]


def _zero_bubble(processes: int, m: int, rank: int) -> list[Part]:
    """From torch's schedule, which reads only these three attributes."""
    schedule: Any = SimpleNamespace(
        pp_group_size=processes, num_stages=2 * processes, _n_microbatches=m
    )
    actions = ScheduleZBVZeroBubble._calculate_single_rank_operations(schedule, rank)
    return [
        Part(one.computation_type.value, one.stage_index, int(one.microbatch_index or 0))
        for one in actions
        if one is not None
    ]
