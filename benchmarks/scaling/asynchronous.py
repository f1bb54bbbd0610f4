"""Update rate of every stage of asynchronous DGL if one stage, or every link, is slow.

    python benchmarks/scaling/asynchronous.py --output FILE.json
    python benchmarks/scaling/asynchronous.py --soak 1800 --output FILE.json

Processes, links and buffers are real; computing is replaced by sleeping. Prints for each stage
its updates a second over its updates a second alone: with links that overwrite and links that
block, one stage slower by `--slow`; and with links on which every message takes `--delay` ms.
`--soak` runs for the given seconds with slow-downs drawn anew every second, and prints the growth
of the memory and the number of batches that were read, overwritten unread, or left.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log
from benchmarks.processes import CPU, connect, in_processes
from benchmarks.scaling.case import FORWARD
from benchmarks.scaling.stage import ROWS, sleep_until
from dglpipe.config import AsyncConfig, LinkConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.dgl_async.progress_engine import ThreadProgressEngine
from dglpipe.methods.dgl_async.receiver import AsyncReceiver
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.staleness import summarize
from dglpipe.methods.dgl_async.storage import StorageFormat
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.transport import Header

NUMBERS = 2048
"""Numbers of a row, for messages of 64 KiB."""
WARM_UP = 0.2
"""Share of the run that is not measured."""
LAST = BatchItem(Phase.TEST, 1, 1, 1, 0, ROWS, ROWS, True, 0, 1, 1)


@dataclass(frozen=True)
class Case:
    """One measurement."""

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
    arguments = parse()
    common.prepare(arguments.output)
    results = []
    for case in cases(arguments):
        runs = [measure(case) for _ in range(1 if arguments.soak else arguments.repeats)]
        results.append({**asdict(case), "runs": runs})
        log(describe(case, runs))
    common.store(arguments.output, results=results)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--ms", type=float, default=20.0, help="of a step of a stage")
    parser.add_argument("--slow", type=float, default=2.0, help="S, of stage 1")
    parser.add_argument("--delay", type=float, default=100.0, help="ms, of every link")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--soak", type=float, help="seconds")
    return parser.parse_args(words)


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
    """The results of every stage, in order."""
    return in_processes(run, case.stages, case)


def run(rank: int, folder: str, case: Case) -> dict[str, Any]:
    """The result of one stage."""
    layout = Layout(case.stages, case.stages, 1, 1)
    group = connect(rank, folder, layout, LinkConfig(delay_ms=case.delay_ms))
    result = AsynchronousStage(rank, case, group).run()
    group.close()
    return result


class AsynchronousStage:
    """A stage that sleeps instead of computing."""

    def __init__(self, rank: int, case: Case, group: ProcessGroup) -> None:
        self._rank, self._case = rank, case
        labels = contiguous_field(LABELS, torch.int64, ())
        ensemble = contiguous_field(ENSEMBLE, torch.float32, (10,))
        features = contiguous_field(ACTIVATIONS, torch.float32, (NUMBERS,))
        formats = {
            Phase.TRAIN: MessageFormat(ROWS, (labels, features)),
            Phase.TEST: MessageFormat(ROWS, (labels, ensemble, features)),
        }
        self._parts = {
            LABELS: torch.zeros(ROWS, dtype=torch.int64),
            ACTIVATIONS: torch.zeros(ROWS, NUMBERS),
        }
        blocks = case.policy == "block"
        self._sender = self._receiver = None
        self._replay: Any = None
        device = CPU.torch_device
        if group.following is not None:
            slots = 1 if blocks else case.depth
            engine = ThreadProgressEngine("sender")
            self._sender = AsyncSender(group.following, formats, device, slots, not blocks, engine)
        if group.previous is not None:
            self._replay = InOrder() if blocks else Replay(case.buffer)
            slots = case.depth if blocks else case.buffer + 2
            self._receiver = AsyncReceiver(
                group.previous,
                formats,
                device,
                self._replay,
                slots,
                storage=StorageFormat(AsyncConfig(), CPU, torch.float32),
                last_test=LAST.number,
                name=f"link {rank - 1} -> {rank}",
                engine=ThreadProgressEngine("receiver"),
            )
        self._updates = self._outputs = self._waits = 0
        self._generator = random.Random(rank)
        self._factor, self._drawn = case.slowdown[rank], 0.0

    def run(self) -> dict[str, Any]:
        case = self._case
        start = time.perf_counter()
        opened, before, memory = start, 0, resident()
        while time.perf_counter() - start < case.seconds:
            if opened == start and time.perf_counter() - start > WARM_UP * case.seconds:
                opened, before, memory = time.perf_counter(), self._updates, resident()
            self._step()
        rate = (self._updates - before) / (time.perf_counter() - opened)
        own = 1e3 / (case.ms * case.slowdown[self._rank])
        grown = resident() - memory
        if self._receiver is not None:
            while not self._receiver.has_test:
                if self._receiver.read(learns=False) is None:
                    self._receiver.wait()
            self._receiver.test(LAST)
        dropped = 0
        if self._sender is not None:
            self._sender.send(LAST, self._parts)
            self._sender.close()
            dropped = self._sender.dropped
        if self._receiver is not None:
            self._receiver.close()
        size = case.buffer * ROWS * NUMBERS * 4
        counts = (self._updates, self._outputs, dropped, self._waits, size)
        return {
            "stage": self._rank,
            "share_of_own_pace": rate / own,
            "grown_bytes": grown,
            "staleness": summarize(self._replay, *counts),
        }

    def _step(self) -> None:
        """Makes an update, or waits for a batch."""
        receiver = self._receiver
        if receiver is not None and receiver.read() is None:
            self._waits += 1
            if not receiver.has_test:
                receiver.wait()
            else:
                time.sleep(0.001)
            return
        seconds = self._case.ms / 1e3 * self._slowdown()
        end = time.perf_counter() + seconds
        time.sleep(FORWARD * seconds)
        if self._sender is not None:
            self._outputs += 1
            self._sender.send(Header(Phase.TRAIN, self._outputs, ROWS), self._parts)
        sleep_until(end)
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


def describe(case: Case, runs: list[list[dict[str, Any]]]) -> str:
    what = f"{case.policy:9} S={max(case.slowdown):g} delay {case.delay_ms:g} ms:"
    if case.random:
        return "\n".join([f"soak, {case.seconds:g} s:", *map(describe_batches, runs[0])])
    shares = [median(run[j]["share_of_own_pace"] for run in runs) for j in range(case.stages)]
    listed = " ".join(f"{one:.3f}" for one in shares)
    return f"{what} update rate over that of the stage alone, by stage: {listed}"


def describe_batches(one: dict[str, Any]) -> str:
    """Growth of the memory, and what became of every batch."""
    counts = one["staleness"]
    line = f"  stage {one['stage']}: memory grew by {one['grown_bytes'] / 2**20:.1f} MiB"
    line += f"; outputs {counts['outputs']}, dropped {counts['dropped']}"
    if counts["reads"] is None:
        return line
    received, left = counts["received"], counts["left_unread"]
    read = sum(count for reads, count in counts["reads_by_entry"].items() if reads != "0")
    overwritten = counts["overwritten_unread"]
    missing = received - read - overwritten - left
    return (
        f"{line}; received {received} = read {read} + overwritten unread {overwritten} + "
        f"left {left}" + (f" + MISSING {missing}" if missing else "")
    )


if __name__ == "__main__":
    main()
