"""Cost of the timer of a process, with and without a timeline.

A run with a timeline gives the laps a step and the time of a step; a lap of each kind of timer is
measured alone. The share of a step is laps a step x cost of a lap / time of a step.
"""

from __future__ import annotations

import time
from collections import Counter
from statistics import median
from typing import Any

import torch

from benchmarks.common import log, train
from dglpipe.monitoring.cuda_timers import CudaTimer
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.monitoring.trace import TracingTimer

PROCESSES = 2
LAPS = 20_000
ROUNDS = 7
ALWAYS = ("load", "receive", "wait", "forward", "step", "other", "log")
"""Spans of a run without a timeline; a timeline adds send, head and backward."""


def measure(width: int, batch: int, steps: int) -> dict[str, Any]:
    """Nanoseconds of a lap by timer, and a row for each stage of `cnn6`."""
    on_gpu = torch.cuda.device_count() >= PROCESSES
    nanoseconds = {name: lap(timer) for name, timer in timers(on_gpu).items()}
    rows = stage_rows(width, batch, steps)
    for row in rows:
        for name, cost in nanoseconds.items():
            count = row["laps_with_timeline" if "TracingTimer" in name else "laps"]
            share = count * cost / 1e9 / row["seconds_a_step"]
            row[f"share_{name}"] = share
            log(
                f"stage {row['stage']} {name:24}: {count:.1f} laps a step x {cost:.0f} ns / "
                f"{row['seconds_a_step'] * 1e3:.2f} ms = {share:.3%}"
            )
    return {"nanoseconds_a_lap": nanoseconds, "rows": rows}


def timers(on_gpu: bool) -> dict[str, Timer]:
    """The timers of a run without and with a timeline; the laps of a GPU are events."""
    plain: dict[str, Timer] = {"Timer": Timer(), "TracingTimer": TracingTimer()}
    if not on_gpu:
        return plain
    device = torch.device("cuda")
    return {f"CudaTimer, {name}": CudaTimer(device, timer) for name, timer in plain.items()}


def lap(timer: Timer) -> float:
    """Nanoseconds of the host for one lap: the median of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(LAPS):
            timer.lap(0, Kind.BUSY, "forward")
        rounds.append((time.perf_counter_ns() - start) / LAPS)
    return median(rounds)


def stage_rows(width: int, batch: int, steps: int) -> list[dict[str, Any]]:
    """Laps and seconds a step of each stage, after a quarter of the steps."""
    training = train(
        [
            *("model=cnn6", f"model.width={width}", "data=synthetic", "epochs=1"),
            *("data.image_size=32", f"data.samples={batch * steps}", f"batch_size={batch}"),
            *("evaluate.every=0", "pipeline.threads=1", f"pipeline.stages={PROCESSES}"),
            "timeline=true",
        ]
    )
    spans = [one for one in training.spans if one["args"]["step"] > steps / 4]
    rows = []
    for stage in sorted({one["tid"] for one in spans}):
        own = [one for one in spans if one["tid"] == stage and one["name"] != "evaluation"]
        count = len({one["args"]["step"] for one in own})
        names = Counter(one["name"] for one in own)
        rows.append(
            {
                "stage": stage,
                "laps": sum(names[name] for name in ALWAYS) / count,
                "laps_with_timeline": sum(names.values()) / count,
                "seconds_a_step": sum(one["dur"] for one in own) / 1e6 / count,
            }
        )
    return rows
