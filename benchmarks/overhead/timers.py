"""What it costs to account for the time of a step, and to keep its timeline.

    python benchmarks/clock_cost/clock_cost.py --output FILE.json

Trains some steps of a small network with a timeline, which says how many laps of the clock a step
has and how long it takes; times a lap of both kinds of clock by itself. The share of a step is
laps a step x cost of a lap / time of a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dglpipe.monitoring.cuda_timers import CudaTimer
from dglpipe.monitoring.timers import Clock, Kind
from dglpipe.monitoring.trace import TracingTimer

sys.path.append(str(Path(__file__).parents[1]))

import record

PROCESSES = 2
LAPS = 20_000
ROUNDS = 7
ALWAYS = ("load", "receive", "wait", "forward", "step", "other", "log")
"""What is noted without a timeline too; a timeline adds send, head and backward."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=16, help="of cnn6")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", help="JSON file of the results")
    arguments = parser.parse_args()
    record.prepare(arguments.output)
    nanoseconds = {
        name: lap(clock) for name, clock in clocks(torch.cuda.device_count() >= PROCESSES).items()
    }
    rows = steps_of(arguments)
    for row in rows:
        for name in nanoseconds:
            count = row["laps_with_timeline" if "TracingTimer" in name else "laps"]
            share = count * nanoseconds[name] / 1e9 / row["seconds_a_step"]
            row[f"share_{name}"] = share
            sys.stdout.write(
                f"stage {row['stage']} {name:24}: {count:.1f} laps a step x "
                f"{nanoseconds[name]:.0f} ns / {row['seconds_a_step'] * 1e3:.2f} ms = {share:.3%}\n"
            )
    record.store(arguments.output, nanoseconds_a_lap=nanoseconds, rows=rows)


def clocks(on_gpu: bool) -> dict[str, Clock]:
    """Those of a run without and with a timeline; on a GPU their laps are events."""
    plain: dict[str, Clock] = {"Clock": Clock(), "TracingTimer": TracingTimer()}
    if not on_gpu:
        return plain
    device = torch.device("cuda")
    return {f"CudaTimer, {name}": CudaTimer(device, clock) for name, clock in plain.items()}


def lap(clock: Clock) -> float:
    """Nanoseconds that it takes the host; the median of some rounds."""
    seen = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(LAPS):
            clock.lap(0, Kind.BUSY, "forward")
        seen.append((time.perf_counter_ns() - start) / LAPS)
    return median(seen)


def steps_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Laps a step and the time of a step, stage by stage."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = [
            *("model=cnn6", f"model.width={arguments.width}", "data=synthetic", "epochs=1"),
            *("data.image_size=32", f"data.samples={arguments.batch * arguments.steps}"),
            *(f"batch_size={arguments.batch}", "evaluate.every=0", "pipeline.threads=1"),
            *(f"pipeline.stages={PROCESSES}", "timeline=true", f"run_dir={run_dir}"),
        ]
        command = [sys.executable, "-m", "dglpipe", "train", *words]
        subprocess.run(command, check=True, capture_output=True)
        events = json.loads((run_dir / "timeline.json").read_text())["traceEvents"]
    warm = arguments.steps / 4
    spans = [one for one in events if one["ph"] == "X" and one["args"]["step"] > warm]
    rows = []
    for stage in sorted({one["tid"] for one in spans}):
        own = [one for one in spans if one["tid"] == stage and one["name"] != "evaluation"]
        steps = len({one["args"]["step"] for one in own})
        names = Counter(one["name"] for one in own)
        rows.append(
            {
                "stage": stage,
                "laps": sum(names[name] for name in ALWAYS) / steps,
                "laps_with_timeline": sum(names.values()) / steps,
                "seconds_a_step": sum(one["dur"] for one in own) / 1e6 / steps,
            }
        )
    return rows


if __name__ == "__main__":
    main()
