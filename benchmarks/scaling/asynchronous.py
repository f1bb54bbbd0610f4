"""The pace of every stage where one stage, or every link, is slow.

    python benchmarks/async/paces.py --output FILE.json
    python benchmarks/async/paces.py --soak 1800 --output FILE.json

Real processes, links and buffers; computing is replaced by sleeping. Prints, stage by stage,
updates a second over what the stage makes alone: with links that overwrite and that block, one
stage slower by `--slow`; and with links on which every message takes `--delay` ms. `--soak` runs
for so many seconds with slow-downs drawn anew every second, and tells what has become of every
batch and of the memory.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as mp

from dglpipe.config import AsyncConfig, LinkConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.dgl_async.progress_engine import ThreadProgressEngine
from dglpipe.methods.dgl_async.receiver import AsyncReceiver
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.staleness import told
from dglpipe.methods.dgl_async.storage import StorageFormat
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.process_group import ProcessGroup, rendezvous
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.transport import Header

sys.path.append(str(Path(__file__).parents[1]))

import record

CPU = Device(torch.device("cpu"), "gloo")
ROWS, NUMBERS = 8, 2048
"""A message of 64 KiB."""
FORWARD = 1 / 3
"""Share of a stage's time before it sends."""
WARM = 0.2
"""Share of the run before the steady state."""
LAST = BatchItem(Phase.TEST, 1, 1, 1, 0, ROWS, ROWS, True, 0, 1, 1)


@dataclass(frozen=True)
class Case:
    """What one measurement is of."""

    stages: int
    ms: float
    seconds: float
    policy: str
    slowdown: tuple[float, ...]
    delay_ms: float = 0.0
    buffer: int = 10
    depth: int = 2
    random: bool = False
    """Whether slow-downs from 1 to 3 are drawn anew every second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--ms", type=float, default=20.0, help="of a step of a stage")
    parser.add_argument("--slow", type=float, default=2.0, help="S, of stage 1")
    parser.add_argument("--delay", type=float, default=100.0, help="ms, of every link")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--soak", type=float, help="seconds")
    parser.add_argument("--output", help="JSON file of the results")
    arguments = parser.parse_args()
    record.prepare(arguments.output)
    results = []
    for case in cases(arguments):
        runs = [measure(case) for _ in range(1 if arguments.soak else arguments.repeats)]
        results.append({**asdict(case), "runs": runs})
        sys.stdout.write(described(case, runs) + "\n")
        sys.stdout.flush()
    record.store(arguments.output, results=results)


def cases(arguments: argparse.Namespace) -> list[Case]:
    even = (1.0,) * arguments.stages
    size = (arguments.stages, arguments.ms)
    if arguments.soak:
        return [Case(*size, arguments.soak, "overwrite", even, random=True)]
    slow = tuple(arguments.slow if j == 1 else 1.0 for j in range(arguments.stages))
    chosen = [Case(*size, arguments.seconds, policy, slow) for policy in ("block", "overwrite")]
    late = Case(*size, arguments.seconds, "overwrite", even, arguments.delay)
    return [*chosen, late]


def measure(case: Case) -> list[dict[str, Any]]:
    """What every stage says, in order."""
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("fork").SimpleQueue()
        context = mp.start_processes(
            run, (case, folder, results), case.stages, join=False, start_method="fork"
        )
        said = sorted((results.get() for _ in range(case.stages)), key=lambda one: one["stage"])
        while not context.join():
            pass
    return said


def run(rank: int, case: Case, folder: str, results: Any) -> None:
    """One process."""
    torch.set_num_threads(1)
    store = rendezvous(120, f"file://{folder}/store", rank, case.stages)
    layout = Layout(case.stages, case.stages, 1, 1)
    slow = LinkConfig(delay_ms=case.delay_ms)
    group = ProcessGroup.connect(layout.at(rank), CPU, store, 120, link=slow)
    results.put(Player(rank, case, group).play())
    group.close()


class Player:
    """A stage that sleeps where it would compute."""

    def __init__(self, rank: int, case: Case, group: ProcessGroup) -> None:
        self._rank, self._case = rank, case
        labels = contiguous_field(LABELS, torch.int64, ())
        ensemble = contiguous_field(ENSEMBLE, torch.float32, (10,))
        features = contiguous_field(ACTIVATIONS, torch.float32, (NUMBERS,))
        layouts = {
            Phase.TRAIN: MessageFormat(ROWS, (labels, features)),
            Phase.TEST: MessageFormat(ROWS, (labels, ensemble, features)),
        }
        self._parts = {
            LABELS: torch.zeros(ROWS, dtype=torch.int64),
            ACTIVATIONS: torch.zeros(ROWS, NUMBERS),
        }
        blocks = case.policy == "block"
        self._outbox = self._inbox = None
        self._replay: Any = None
        device = CPU.torch_device
        if group.following is not None:
            slots = 1 if blocks else case.depth
            ferry = ThreadProgressEngine("outbox")
            self._outbox = AsyncSender(group.following, layouts, device, slots, not blocks, ferry)
        if group.previous is not None:
            self._replay = InOrder() if blocks else Replay(case.buffer)
            slots = case.depth if blocks else case.buffer + 2
            keeping = StorageFormat(AsyncConfig(), CPU, torch.float32)
            name = f"link {rank - 1} -> {rank}"
            more = (self._replay, slots, keeping, LAST.number, name, ThreadProgressEngine("inbox"))
            self._inbox = AsyncReceiver(group.previous, layouts, device, *more)
        self._updates = self._outputs = self._waits = 0
        self._generator = random.Random(rank)
        self._factor, self._drawn = case.slowdown[rank], 0.0

    def play(self) -> dict[str, Any]:
        case = self._case
        start = time.perf_counter()
        opened, before, memory = start, 0, resident()
        while time.perf_counter() - start < case.seconds:
            if opened == start and time.perf_counter() - start > WARM * case.seconds:
                opened, before, memory = time.perf_counter(), self._updates, resident()
            self._turn()
        rate = (self._updates - before) / (time.perf_counter() - opened)
        own = 1e3 / (case.ms * case.slowdown[self._rank])
        grown = resident() - memory
        if self._inbox is not None:
            while not self._inbox.has_test:
                if self._inbox.read(learns=False) is None:
                    self._inbox.wait()
            self._inbox.test(LAST)
        dropped = 0
        if self._outbox is not None:
            self._outbox.send(LAST, self._parts)
            self._outbox.close()
            dropped = self._outbox.dropped
        if self._inbox is not None:
            self._inbox.close()
        size = case.buffer * ROWS * NUMBERS * 4
        story = told(self._replay, self._updates, self._outputs, dropped, self._waits, size)
        share = {"stage": self._rank, "share_of_own_pace": rate / own, "grown_bytes": grown}
        return {**share, "staleness": story}

    def _turn(self) -> None:
        inbox = self._inbox
        if inbox is not None and inbox.read() is None:
            self._waits += 1
            if not inbox.has_test:
                inbox.wait()
            else:
                time.sleep(0.001)
            return
        seconds = self._case.ms / 1e3 * self._slowdown()
        end = time.perf_counter() + seconds
        time.sleep(FORWARD * seconds)
        if self._outbox is not None:
            self._outputs += 1
            self._outbox.send(Header(Phase.TRAIN, self._outputs, ROWS), self._parts)
        time.sleep(max(0.0, end - time.perf_counter()))
        self._updates += 1

    def _slowdown(self) -> float:
        now = time.perf_counter()
        if self._case.random and now - self._drawn > 1:
            self._factor, self._drawn = self._generator.uniform(1, 3), now
        return self._factor


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def described(case: Case, runs: list[list[dict[str, Any]]]) -> str:
    what = f"{case.policy:9} S={max(case.slowdown):g} delay {case.delay_ms:g} ms:"
    if case.random:
        return "\n".join([f"soak, {case.seconds:g} s:", *map(accounts, runs[0])])
    shares = [median(run[j]["share_of_own_pace"] for run in runs) for j in range(case.stages)]
    return f"{what} share of its own pace, by stage: {' '.join(f'{one:.3f}' for one in shares)}"


def accounts(one: dict[str, Any]) -> str:
    story = one["staleness"]
    line = f"  stage {one['stage']}: memory grew by {one['grown_bytes'] / 2**20:.1f} MiB"
    if story["reads"] is None:
        return f"{line}; outputs {story['outputs']}, dropped {story['dropped']}"
    read = sum(count for reads, count in story["reads_by_entry"].items() if reads != "0")
    unread = story["overwritten_unread"] + story["left_unread"]
    return (
        f"{line}; outputs {story['outputs']}, dropped {story['dropped']}; received "
        f"{story['received']} = read {read} + overwritten unread {story['overwritten_unread']} + "
        f"left {story['left_unread']} ({'all' if story['received'] == read + unread else 'NOT all'}"
        " accounted for)"
    )


if __name__ == "__main__":
    main()
