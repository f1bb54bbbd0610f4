"""How the chain scales past the cores of a machine, and over slow links.

    python benchmarks/scaling/scaling.py --stages 1 2 4 8 16 --ms 5 10 50 --kib 64

Real processes, real links, the real stream plan; what a stage computes is replaced by sleeping (a
share of it by spinning, so that progress is not free), so that more stages than cores can work at
the same time. Prints the efficiency in the steady state: the time that the slowest stage sleeps a
step over the time that a step takes at the last stage. `--gbit` and `--latency` emulate a slow
link: a message leaves within its size over the bandwidth, and arrives a latency later.

Beside it, on the same ideal: GPipe and 1F1B of `torch.distributed.pipelining`, whose modules sleep
one part in forward and two in backward, and data-parallel training with an all-reduce. Their links
are not slowed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from dglpipe.device import Device
from dglpipe.link import Receiver, Sender, Transport, Work
from dglpipe.message import ACTIVATIONS, LABELS, MessageLayout, contiguous_field
from dglpipe.process_group import ProcessGroup, rendezvous
from dglpipe.stream import Phase, StreamPlan
from dglpipe.topology import Layout

CPU = Device(torch.device("cpu"), "gloo")
ROWS = 8
FORWARD = 1 / 3
"""Share of a stage's time before it sends."""
WAYS = ("dgl", "gpipe", "1f1b", "ddp")
QUEUED = 16
"""Messages that may be under way on an emulated link."""


@dataclass(frozen=True)
class Case:
    """What one measurement is of."""

    way: str
    stages: int
    ms: float
    kib: int
    steps: int
    spin: float = 0.0
    uneven: float = 1.0
    """What the time of the middle stage is multiplied by."""
    jitter: float = 0.0
    """Largest relative change of a stage's time, drawn anew for each step."""
    latency_ms: float = 0.0
    gbit: float = 0.0
    """0: as fast as it is."""
    microbatches: int = 8
    depth: int = 2

    def seconds(self, stage: int) -> float:
        return self.ms / 1e3 * (self.uneven if stage == self.stages // 2 else 1.0)


def main() -> None:
    arguments = parse()
    rows = []
    for case in cases(arguments):
        values = [measure(case) for _ in range(arguments.repeats)]
        rows.append({**asdict(case), "efficiency": values})
        sys.stdout.write(told(rows[-1]) + "\n")
        sys.stdout.flush()
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        tree = {"command": ["python", *sys.argv], "environment": machine, "rows": rows}
        Path(arguments.output).write_text(json.dumps(tree, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["dgl"], choices=WAYS)
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--ms", nargs="+", type=float, default=[5, 10, 50])
    parser.add_argument("--kib", nargs="+", type=int, default=[64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spin", type=float, default=0.0, help="share that is not slept")
    parser.add_argument("--uneven", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0], help="ms")
    parser.add_argument("--gbit", nargs="+", type=float, default=[0.0])
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--output", help="JSON file of the results")
    return parser.parse_args()


def cases(arguments: argparse.Namespace) -> list[Case]:
    own = (arguments.spin, arguments.uneven, arguments.jitter)
    return [
        Case(way, stages, ms, kib, arguments.steps, *own, latency, gbit, arguments.microbatches)
        for ms in arguments.ms
        for kib in arguments.kib
        for latency in arguments.latency
        for gbit in arguments.gbit
        for stages in arguments.stages
        for way in arguments.ways
        if stages > 1 or way == "dgl"
    ]


def told(row: dict[str, Any]) -> str:
    values = row["efficiency"]
    link = f"{row['latency_ms']:g} ms, {row['gbit'] or 'any'} Gbit/s"
    return (
        f"{row['way']:6} K={row['stages']:<3} {row['ms']:g} ms a stage, {row['kib']} KiB, {link}: "
        f"efficiency {median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"
    )


def measure(case: Case) -> float:
    """Efficiency of one run."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("fork")
        results = context.Queue()
        arguments = (case, folder, results)
        processes = [
            context.Process(target=run, args=(rank, *arguments)) for rank in range(case.stages)
        ]
        for process in processes:
            process.start()
        seconds = results.get(timeout=600)
        for process in processes:
            process.join(60)
    slowest = max(case.seconds(stage) for stage in range(case.stages))
    return slowest / float(seconds)


def run(rank: int, case: Case, folder: str, results: Any) -> None:
    """One process; the last says how long a step took in the steady state."""
    torch.set_num_threads(1)
    store = rendezvous(120, f"file://{folder}/store", rank, case.stages)
    placement = "line" if case.way in ("gpipe", "1f1b") else "chain"
    layout = Layout(case.stages, case.stages, 1, 1, placement)
    group = ProcessGroup.connect(layout.at(rank), CPU, store, 120)
    step = {"dgl": local, "ddp": replicas}.get(case.way, pipeline)
    seconds = step(rank, case, group)
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


def warm(case: Case) -> int:
    """Steps until the chain is full and has settled."""
    return min(case.steps // 2, case.stages + 5)


def local(rank: int, case: Case, group: ProcessGroup) -> float:
    """A stage of the chain."""
    plan = StreamPlan(ROWS * case.steps, ROWS, ROWS, ROWS, 1, 1, None, 0)
    shape = (case.kib * 1024 // (4 * ROWS),)
    fields = (contiguous_field(LABELS, torch.int64, ()),)
    fields += (contiguous_field(ACTIVATIONS, torch.float32, shape),)
    layouts = {phase: MessageLayout(ROWS, fields) for phase in Phase}
    items = [item for item in plan.items() if item.phase is Phase.TRAIN]
    receiver = sender = None
    if group.previous is not None:
        receiver = Receiver(
            group.previous, layouts, iter(items), case.depth, CPU.torch_device, f"link to {rank}"
        )
    if group.following is not None:
        transport: Transport = group.following
        if case.latency_ms or case.gbit:
            transport = SlowTransport(transport, case.latency_ms / 1e3, case.gbit)
        sender = Sender(transport, layouts, CPU.torch_device)
    parts = {LABELS: torch.zeros(ROWS, dtype=torch.int64), ACTIVATIONS: torch.zeros(ROWS, *shape)}
    generator = torch.Generator().manual_seed(rank)
    start = time.perf_counter()
    for item in items:
        if receiver is not None:
            receiver.take()
        change = 1 + case.jitter * (2 * float(torch.rand((), generator=generator)) - 1)
        seconds = case.seconds(rank) * change
        began = time.perf_counter()
        work(FORWARD * seconds, case.spin)
        if sender is not None:
            sender.wait()
            sender.send(item, parts)
        work(seconds - (time.perf_counter() - began), case.spin)
        if item.step == warm(case):
            start = time.perf_counter()
    end = time.perf_counter()
    if receiver is not None:
        receiver.check()
    if sender is not None:
        sender.wait()
    return (end - start) / (case.steps - warm(case))


class SlowTransport:
    """A link on which a message takes its time: it leaves at the bandwidth, and arrives later."""

    def __init__(self, transport: Transport, latency: float, gbit: float) -> None:
        self._transport = transport
        self._latency = latency
        self._rate = gbit * 1e9 / 8 if gbit else float("inf")
        self._queue: queue.Queue[tuple[float, Tensor]] = queue.Queue(QUEUED)
        self._free = 0.0
        threading.Thread(target=self._deliver, daemon=True).start()

    def isend(self, tensor: Tensor) -> Work:
        self._free = max(self._free, time.perf_counter()) + len(tensor) / self._rate
        self._queue.put((self._free + self._latency, tensor.clone()))
        return _Until(self._free)

    def irecv(self, tensor: Tensor) -> Work:
        return self._transport.irecv(tensor)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._transport.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._transport.fill(target, value)

    def _deliver(self) -> None:
        while True:
            due, tensor = self._queue.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            self._transport.isend(tensor).wait()


class _Until:
    def __init__(self, due: float) -> None:
        self._due = due

    def wait(self) -> None:
        time.sleep(max(0.0, self._due - time.perf_counter()))


class _Sleeps(torch.autograd.Function):
    """One part in forward, two in backward."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, weight: Tensor, seconds: float, spin: float) -> Tensor:
        ctx.seconds, ctx.spin = seconds, spin
        work(seconds * FORWARD, spin)
        return batch + weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        work(ctx.seconds * (1 - FORWARD), ctx.spin)
        return gradient, gradient.sum(), None, None


class _Module(nn.Module):
    def __init__(self, seconds: float, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self._seconds, self._spin = seconds, case.spin

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = _Sleeps.apply(batch, self.weight, self._seconds, self._spin)
        return result


def pipeline(rank: int, case: Case, group: ProcessGroup) -> float:
    """A process of pipelined backprop, with the same work a step as a stage of the chain."""
    m, count = case.microbatches, case.stages
    rows = case.kib * 1024 // 4 // m
    came = torch.zeros(rows, requires_grad=rank > 0)
    made = torch.zeros(rows, requires_grad=True)
    module = _Module(case.seconds(rank) / m, case)
    stage = PipelineStage(module, rank, count, CPU.torch_device, came, made, group=group.pipeline)

    def loss(output: Tensor, _target: Tensor) -> Tensor:
        return output.sum()

    kind = ScheduleGPipe if case.way == "gpipe" else Schedule1F1B
    schedule = kind(stage, m, loss_fn=loss)
    batch = torch.zeros(rows * m)
    images = (batch,) if rank == 0 else ()
    target = batch if rank == count - 1 else None
    start = time.perf_counter()
    for number in range(1, case.steps + 1):
        schedule.step(*images, target=target, return_outputs=False)
        if number == warm(case):
            start = time.perf_counter()
    return (time.perf_counter() - start) / (case.steps - warm(case))


def replicas(_rank: int, case: Case, _group: ProcessGroup) -> float:
    """Data-parallel training: the same work, and an all-reduce of as many bytes as a message."""
    gradient = torch.zeros(case.kib * 1024 // 4)
    start = time.perf_counter()
    for number in range(1, case.steps + 1):
        work(case.ms / 1e3, case.spin)
        dist.all_reduce(gradient)
        if number == warm(case):
            start = time.perf_counter()
    return (time.perf_counter() - start) / (case.steps - warm(case))


if __name__ == "__main__":
    main()
