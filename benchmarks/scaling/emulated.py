"""One process of a method whose computing is replaced by sleeping.

Links, plan and schedules are the real ones; a stage takes one part of its time in forward and two
in backward, of which a zero-bubble schedule may put one off.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from slow_links import slow_down
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleZBVZeroBubble,
)

from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.emulated_transport import EmulatedLine, EmulatedTransport
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.process_group import ProcessGroup, rendezvous
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.transport import Transport

CPU = Device(torch.device("cpu"), "gloo")
ROWS = 8
FORWARD = 1 / 3
"""Share of a stage's time before it sends."""
PIPELINES = ("gpipe", "1f1b", "zbv")
PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Case:
    """What one measurement is of."""

    way: str
    stages: int
    ms: float
    kib: int
    steps: int
    spin: float = 0.0
    """Share of its time that a stage computes instead of sleeping."""
    uneven: float = 1.0
    """What the time of the middle stage is multiplied by."""
    jitter: float = 0.0
    """Largest relative change of a stage's time, drawn anew for each step."""
    latency_ms: float = 0.0
    gbit: float = 0.0
    """0: as fast as it is."""
    microbatches: int = 8
    """Of a pipeline."""
    gradient_kib: int = 1024
    """What data-parallel training averages."""
    depth: int = 2
    buckets: int = 4
    """In which data-parallel training averages its gradients, while backward goes on."""

    def seconds(self, stage: int) -> float:
        return self.ms / 1e3 * (self.uneven if stage == self.stages // 2 else 1.0)

    @property
    def ideal(self) -> float:
        """Seconds of a step of a chain that never waits: those of its slowest stage."""
        return max(self.seconds(stage) for stage in range(self.stages))

    @property
    def mean(self) -> float:
        """Seconds of a step of a replica, which computes all stages of 1/K of the batch."""
        return sum(self.seconds(stage) for stage in range(self.stages)) / self.stages

    @property
    def chunks(self) -> int:
        """Stages of a process of a pipeline."""
        return 2 if self.way == "zbv" else 1

    @property
    def hops(self) -> int:
        """Messages one after the other in which a ring averages a bucket."""
        return 2 * (self.stages - 1)

    @property
    def refusal(self) -> str | None:
        """Why the way does not take this setting."""
        if self.stages == 1 and self.way != "dgl":
            return "one process has no peers"
        if self.way == "1f1b" and self.microbatches < self.stages:
            return f"takes at least {self.stages} micro-batches"
        if self.way == "bare" and self.is_emulated:
            return "goes over the links as they are"
        return None

    @property
    def latency(self) -> float:
        """Seconds."""
        return self.latency_ms / 1e3

    @property
    def rate(self) -> float:
        """Of a link, in bytes a second."""
        return self.gbit * 1e9 / 8 if self.gbit else float("inf")

    @property
    def is_emulated(self) -> bool:
        return bool(self.latency_ms or self.gbit)

    @property
    def warm(self) -> int:
        """Steps until the chain is full and has settled."""
        return min(self.steps // 2, self.stages + 5)


def run(rank: int, case: Case, folder: str, results: Any) -> None:
    """One process; the last says how long a step took in the steady state."""
    if case.refusal is not None:
        raise ValueError(f"{case.way}: {case.refusal}")
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # Sleeping ends on time; the kernel may otherwise wait 50 us for other timers.
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    store = rendezvous(120, f"file://{folder}/store", rank, case.stages)
    placement = {"gpipe": "line", "1f1b": "line", "zbv": "v"}.get(case.way, "chain")
    count = case.stages * (2 if placement == "v" else 1)
    layout = Layout(count, case.stages, 1, 1, placement)  # type: ignore[arg-type]
    group = ProcessGroup.connect(layout.at(rank), CPU, store, 120)
    seconds = WAYS[case.way](rank, case, group)
    if rank == case.stages - 1:
        results.put(seconds)
        results.close()
        results.join_thread()
    group.close()


def work(seconds: float, spin: float) -> None:
    """Takes `seconds`, a share of it computing."""
    end = time.perf_counter() + seconds
    if spin:
        until = time.perf_counter() + seconds * spin
        while time.perf_counter() < until:
            pass
    left = end - time.perf_counter()
    if left > 0:
        time.sleep(left)


class Pace:
    """The time of a stage's steps, and when the steady state began."""

    def __init__(self, rank: int, case: Case) -> None:
        self._case = case
        self._seconds = case.mean if case.way == "ddp" else case.seconds(rank)
        self._generator = torch.Generator().manual_seed(rank)
        self._start = time.perf_counter()

    def draw(self) -> float:
        """Seconds of the next step."""
        if not self._case.jitter:
            return self._seconds
        change = 2 * float(torch.rand((), generator=self._generator)) - 1
        return self._seconds * (1 + self._case.jitter * change)

    def done(self, step: int) -> None:
        if step == self._case.warm:
            self._start = time.perf_counter()

    def per_step(self) -> float:
        return (time.perf_counter() - self._start) / (self._case.steps - self._case.warm)


def local(rank: int, case: Case, group: ProcessGroup) -> float:
    """A stage of the chain."""
    plan = BatchSchedule(ROWS * case.steps, ROWS, ROWS, ROWS, 1, 1, None, 0)
    shape = (case.kib * 1024 // (4 * ROWS),)
    fields = (contiguous_field(LABELS, torch.int64, ()),)
    fields += (contiguous_field(ACTIVATIONS, torch.float32, shape),)
    layouts = {phase: MessageFormat(ROWS, fields) for phase in Phase}
    items = [item for item in plan.items() if item.phase is Phase.TRAIN]
    receiver = sender = None
    if group.previous is not None:
        receiver = Receiver(
            group.previous, layouts, iter(items), case.depth, CPU.torch_device, f"link to {rank}"
        )
    if group.following is not None:
        transport: Transport = group.following
        if case.is_emulated:
            # As `link.delay_ms` and `link.bandwidth_mbps` of a run: one message under way, so
            # that D bounds what is on a link too.
            transport = EmulatedTransport(transport, case.latency, case.rate, until_arrival=True)
        sender = Sender(transport, layouts, CPU.torch_device)
    parts = {LABELS: torch.zeros(ROWS, dtype=torch.int64), ACTIVATIONS: torch.zeros(ROWS, *shape)}
    pace = Pace(rank, case)
    for item in items:
        if receiver is not None:
            receiver.take()
        seconds = pace.draw()
        work(FORWARD * seconds, case.spin)
        if sender is not None:
            sender.wait()
            sender.send(item, parts)
        work((1 - FORWARD) * seconds, case.spin)
        pace.done(item.step)
    result = pace.per_step()
    if receiver is not None:
        receiver.check()
    if sender is not None:
        sender.wait()
    return result


def bare(rank: int, case: Case, group: ProcessGroup) -> float:
    """The same chain by hand: gloo alone, a receive posted ahead, nothing checked."""
    buffers = [torch.zeros(case.kib * 256) for _ in range(3)]
    previous, following = group.previous, group.following
    coming = previous.irecv(buffers[0]) if previous is not None else None
    going = None
    pace = Pace(rank, case)
    for step in range(1, case.steps + 1):
        if previous is not None and coming is not None:
            coming.wait()
            coming = previous.irecv(buffers[step % 2]) if step < case.steps else None
        seconds = pace.draw()
        work(FORWARD * seconds, case.spin)
        if following is not None:
            if going is not None:
                going.wait()
            going = following.isend(buffers[2])
        work((1 - FORWARD) * seconds, case.spin)
        pace.done(step)
    result = pace.per_step()
    if going is not None:
        going.wait()
    return result


class _Sleeps(torch.autograd.Function):
    """One part in forward, one for the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, weight: Tensor, seconds: float, spin: float) -> Tensor:
        ctx.seconds, ctx.spin = seconds, spin
        work(seconds, spin)
        return batch + weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        work(ctx.seconds, ctx.spin)
        ctx.seconds = 0.0  # a schedule that puts the weights off comes by here once more
        # The gradient of a sum is one number, spread out; what is sent must be dense.
        return gradient.contiguous(), gradient.sum(), None, None


class _SleepsForWeights(torch.autograd.Function):
    """One part for the gradient of the weights, which may come later."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, seconds: float, spin: float) -> Tensor:
        ctx.seconds, ctx.spin = seconds, spin
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        work(ctx.seconds, ctx.spin)
        return gradients[0], None, None


class _Module(nn.Module):
    """(rows,) -> (rows,), one part of its time in forward and two in backward."""

    def __init__(self, spin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seconds = 0.0
        """Of the next micro-batch."""
        self._spin = spin

    def forward(self, batch: Tensor) -> Tensor:
        part = self.seconds / 3
        weight = _SleepsForWeights.apply(self.weight, part, self._spin)
        result: Tensor = _Sleeps.apply(batch, weight, part, self._spin)
        return result


def pipeline(rank: int, case: Case, group: ProcessGroup) -> float:
    """A process of pipelined backprop, with the same work a step as a stage of the chain."""
    if case.is_emulated:
        slow_down(case.latency, case.rate)
    m, count = case.microbatches, case.stages
    own = [rank, 2 * count - 1 - rank] if case.way == "zbv" else [rank]
    whole = count * len(own)
    rows = case.kib * 1024 // 4 // m
    stages = []
    modules = [_Module(case.spin) for _ in own]
    for j, module in zip(own, modules, strict=True):
        came = torch.zeros(rows, requires_grad=j > 0)
        made = torch.zeros(rows, requires_grad=True)
        stages.append(
            PipelineStage(module, j, whole, CPU.torch_device, came, made, group=group.pipeline)
        )

    def loss(output: Tensor, _target: Tensor) -> Tensor:
        return output.sum()

    schedule: Any
    if case.way == "zbv":
        schedule = ScheduleZBVZeroBubble(stages, m, loss_fn=loss)
    else:
        kind = ScheduleGPipe if case.way == "gpipe" else Schedule1F1B
        schedule = kind(stages[0], m, loss_fn=loss)
    batch = torch.zeros(rows * m)
    images = (batch,) if 0 in own else ()
    target = batch if whole - 1 in own else None
    pace = Pace(rank, case)
    for step in range(1, case.steps + 1):
        seconds = pace.draw()
        for module in modules:
            module.seconds = seconds / m / len(own)
        schedule.step(*images, target=target, return_outputs=False)
        pace.done(step)
    return pace.per_step()


def replicas(rank: int, case: Case, _group: ProcessGroup) -> float:
    """Data-parallel training: the same work, and gradients averaged while backward goes on.

    A slow link takes what a ring of R processes takes: 2 (R - 1) messages of 1/R of a bucket, one
    after the other, and buckets follow each other as on one stream.
    """
    count, hops = case.stages, case.hops
    buckets = torch.zeros(case.gradient_kib * 256).chunk(case.buckets)
    line = EmulatedLine(0.0, case.rate) if case.is_emulated else None
    pace = Pace(rank, case)
    for step in range(1, case.steps + 1):
        seconds = pace.draw()
        work(FORWARD * seconds, case.spin)
        pending = []
        due = 0.0
        for bucket in buckets:
            work((1 - FORWARD) * seconds / len(buckets), case.spin)
            pending.append(dist.all_reduce(bucket, async_op=True))
            if line is not None:
                size = bucket.nbytes * hops // count
                due = line.leaves(size, hops * case.latency)
        for one in pending:
            one.wait()
        time.sleep(max(0.0, due - time.perf_counter()))
        pace.done(step)
    return pace.per_step()


WAYS: dict[str, Callable[[int, Case, ProcessGroup], float]] = {
    "dgl": local,
    "bare": bare,
    "gpipe": pipeline,
    "1f1b": pipeline,
    "zbv": pipeline,
    "ddp": replicas,
}
