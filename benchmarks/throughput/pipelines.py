"""Cuts by measured time, command lines and bounds of pipelined backprop.

`throughput.py` and `time_to_accuracy.py` share this module.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import run
from dglpipe.host import cores
from dglpipe.partition.balance import SegmentCosts

PARTS = Path(__file__).parent / "parts.py"
SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "zbv": 2}
"""Stages of a process."""


def measure_segments(words: Iterable[str]) -> SegmentCosts:
    """Seconds a step of the segments of a network and of the heads between them."""
    times = json.loads(run([sys.executable, str(PARTS), "times", *words]))
    return SegmentCosts(links=(), **{key: tuple(values) for key, values in times.items()})


def best_cut(
    costs: SegmentCosts, count: int, busiest: Callable[[Sequence[float]], float]
) -> list[int]:
    """First segment of each of `count` stages, for the least time of the busiest process.

    Args:
        busiest: seconds of the stages -> seconds of the busiest process.
    """
    cuts = itertools.combinations(range(1, len(costs.segments)), count - 1)
    return min(([0, *cut] for cut in cuts), key=lambda bounds: busiest(costs.stages(bounds)))


def pipeline_cut(costs: SegmentCosts, schedule: str, processes: int) -> list[int]:
    """First segment of each stage of a pipeline, for the least time of the busiest process."""

    def busiest(seconds: Sequence[float]) -> float:
        return max(process_seconds(schedule, seconds, processes))

    return best_cut(costs.without_heads(), SCHEDULES[schedule] * processes, busiest)


def process_seconds(schedule: str, seconds: Sequence[float], processes: int) -> list[float]:
    """Seconds that each process computes, from the seconds of the stages."""
    count = len(seconds)
    return [
        sum(seconds[j] for j in stages_of(schedule, process, count, processes))
        for process in range(processes)
    ]


def stages_of(schedule: str, process: int, count: int, processes: int) -> Sequence[int]:
    """Which of `count` stages a process has."""
    if schedule == "zbv":
        return process, count - 1 - process
    return range(process, count, processes)


def pipeline_words(schedule: str, microbatches: int, bounds: Sequence[int]) -> list[str]:
    """Overrides of pipelined backprop with this cut."""
    return [
        *("method=backprop", f"method.schedule={schedule}", f"method.microbatches={microbatches}"),
        *(f"pipeline.stages={len(bounds)}", f"pipeline.split={list(bounds[1:])}"),
    ]


def has_segments(schedule: str, processes: int, costs: SegmentCosts) -> bool:
    """Whether the network has a segment for each stage of the schedule."""
    return SCHEDULES[schedule] * processes <= len(costs.segments)


def fits(schedule: str, microbatches: int, batch: int, processes: int, costs: SegmentCosts) -> bool:
    """Whether the schedule supports this number of micro-batches and has enough segments."""
    if batch // microbatches < 2 or not has_segments(schedule, processes, costs):
        return False
    if schedule == "1f1b":
        return microbatches >= processes
    return schedule != "interleaved_1f1b" or microbatches % processes == 0


def backend(processes: int) -> str:
    """NCCL if each process can have a GPU, else gloo."""
    return "nccl" if torch.cuda.device_count() >= processes else "gloo"


def bound(words: Sequence[str], batch: int, processes: int) -> float:
    """Samples a second of a pipeline whose links cost nothing: its stages and its bubbles alone.

    Each stage is measured alone on the machine, in micro-batches of its size; the busiest process
    computes for m / (m + (P - 1) / v) of the time with v stages a process (zbv: always). On a CPU
    the cores may limit it more: the time of all stages together, divided by the cores.
    """
    settings = dict(word.split("=", 1) for word in words)
    schedule, m = settings["method.schedule"], int(settings["method.microbatches"])
    per_process = SCHEDULES[schedule]
    # One process builds the whole network with this cut.
    words = [word for word in words if not word.startswith("pipeline.processes")]
    count = per_process * processes
    seconds = [batch / run_parts([["stage", str(j), *words]])[0] for j in range(count)]
    idle = 0.0 if schedule == "zbv" else (processes - 1) / per_process
    least = max(process_seconds(schedule, seconds, processes)) * (m + idle) / m
    if backend(processes) == "gloo":
        least = max(least, sum(seconds) / cores())
    return batch / least


def run_parts(commands: Sequence[Sequence[str]]) -> list[float]:
    """Samples a second of parts (`parts.py`) that run at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {**os.environ, "PARTS_FOLDER": folder, "PARTS_COUNT": str(len(commands))}
        processes = [
            start_part(words, {**shared, "PARTS_INDEX": str(index)})
            for index, words in enumerate(commands)
        ]
        outputs = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{process.args!r}: status {process.returncode}\n{error}")
    return [float(output) for output, _ in outputs]


def start_part(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PARTS), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
