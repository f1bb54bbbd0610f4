"""One process of a way of training whose computing is replaced by sleeping.

Links, batch schedule and pipeline schedules are real.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.processes import CPU, connect, in_processes
from benchmarks.scaling.case import FORWARD, PIPELINES, Case
from benchmarks.scaling.pipelines import pipeline
from benchmarks.scaling.stage import ROWS, StepTimer, compute
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.pipeline.emulated_transport import EmulatedLine, EmulatedTransport
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.transport import Transport

PR_SET_TIMERSLACK = 29


def measure(case: Case) -> float:
    """Efficiency of one run."""
    if case.refusal is not None:
        raise ValueError(f"{case.way}: {case.refusal}")
    seconds = in_processes(run, case.stages, case)
    return case.ideal / float(seconds[-1])


def run(rank: int, folder: str, case: Case) -> float:
    """Seconds a step of one process in the steady state."""
    if sys.platform == "linux":
        # Sleeping ends on time; the kernel may otherwise wait 50 us for other timers.
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    placement = {"gpipe": "line", "1f1b": "line", "zbv": "v"}.get(case.way, "chain")
    count = case.stages * (2 if placement == "v" else 1)
    group = connect(rank, folder, Layout(count, case.stages, 1, 1, placement))
    seconds = WAYS[case.way](rank, case, group)
    group.close()
    return seconds


def local(rank: int, case: Case, group: ProcessGroup) -> float:
    """A stage of the chain."""
    schedule = BatchSchedule(ROWS * case.steps, ROWS, ROWS, ROWS, 1, 1, None, 0)
    shape = (case.kib * 1024 // (4 * ROWS),)
    fields = (
        contiguous_field(LABELS, torch.int64, ()),
        contiguous_field(ACTIVATIONS, torch.float32, shape),
    )
    formats = {phase: MessageFormat(ROWS, fields) for phase in Phase}
    items = [item for item in schedule.items() if item.phase is Phase.TRAIN]
    receiver = sender = None
    if group.previous is not None:
        receiver = Receiver(
            group.previous, formats, iter(items), case.depth, CPU.torch_device, f"link to {rank}"
        )
    if group.following is not None:
        transport: Transport = group.following
        if case.link.is_emulated:
            # As `link.delay_ms` and `link.bandwidth_mbps` of a run: one message in flight, so
            # that D also limits the messages on a link.
            transport = EmulatedTransport(
                transport, case.link.delay, case.link.rate, until_arrival=True
            )
        sender = Sender(transport, formats, CPU.torch_device)
    parts = {LABELS: torch.zeros(ROWS, dtype=torch.int64), ACTIVATIONS: torch.zeros(ROWS, *shape)}
    timer = StepTimer(rank, case)
    for item in items:
        if receiver is not None:
            receiver.take()
        seconds = timer.draw()
        compute(FORWARD * seconds, case.spin)
        if sender is not None:
            sender.wait()
            sender.send(item, parts)
        compute((1 - FORWARD) * seconds, case.spin)
        timer.end_step(item.step)
    result = timer.seconds_a_step()
    if receiver is not None:
        receiver.check()
    if sender is not None:
        sender.wait()
    return result


def bare(rank: int, case: Case, group: ProcessGroup) -> float:
    """The same chain with gloo alone: one receive is posted ahead, nothing is checked."""
    buffers = [torch.zeros(case.kib * 256) for _ in range(3)]
    previous, following = group.previous, group.following
    arriving = previous.irecv(buffers[0]) if previous is not None else None
    sending = None
    timer = StepTimer(rank, case)
    for step in range(1, case.steps + 1):
        if previous is not None and arriving is not None:
            arriving.wait()
            arriving = previous.irecv(buffers[step % 2]) if step < case.steps else None
        seconds = timer.draw()
        compute(FORWARD * seconds, case.spin)
        if following is not None:
            if sending is not None:
                sending.wait()
            sending = following.isend(buffers[2])
        compute((1 - FORWARD) * seconds, case.spin)
        timer.end_step(step)
    result = timer.seconds_a_step()
    if sending is not None:
        sending.wait()
    return result


def replicas(rank: int, case: Case, _group: ProcessGroup) -> float:
    """Data-parallel training: the same computing; gradients are averaged during backward.

    A slow link takes the time of a ring of R processes: 2 (R - 1) consecutive messages of 1/R of a
    bucket. Buckets follow each other as on one stream.
    """
    count, hops = case.stages, case.hops
    buckets = torch.zeros(case.gradient_kib * 256).chunk(case.buckets)
    line = EmulatedLine(0.0, case.link.rate) if case.link.is_emulated else None
    timer = StepTimer(rank, case)
    for step in range(1, case.steps + 1):
        seconds = timer.draw()
        compute(FORWARD * seconds, case.spin)
        pending = []
        due = 0.0
        for bucket in buckets:
            compute((1 - FORWARD) * seconds / len(buckets), case.spin)
            pending.append(dist.all_reduce(bucket, async_op=True))
            if line is not None:
                size = bucket.nbytes * hops // count
                due = line.leaves(size, hops * case.link.delay)
        for one in pending:
            one.wait()
        time.sleep(max(0.0, due - time.perf_counter()))
        timer.end_step(step)
    return timer.seconds_a_step()


WAYS: dict[str, Callable[[int, Case, ProcessGroup], float]] = {
    "dgl": local,
    "bare": bare,
    **dict.fromkeys(PIPELINES, pipeline),
    "ddp": replicas,
}
