"""Seconds of training to a stated accuracy, method by method.

    python benchmarks/time_to_accuracy/time_to_accuracy.py --output FILE.json

Every method trains with every learning rate and seed on the same data, network and schedule, in
turn; the rate that comes first to the accuracy (median over the seeds) is a method's own. A time is
the samples seen until then over the samples a second of the same run in its steady state, so
starting processes and evaluating do not count. The accuracy is that of the last exit on the test
images, after each epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dglpipe.config import from_yaml

METHODS = {
    "backprop, 1 thread": ["method=backprop", "pipeline.threads=1"],
    "backprop, all threads": ["method=backprop", f"pipeline.threads={os.cpu_count() or 1}"],
    "backprop, data-parallel": ["method=backprop", "pipeline.replicas=2", "pipeline.threads=1"],
    "backprop, 1F1B": [
        *("method=backprop", "pipeline.stages=2", "method.schedule=1f1b"),
        *("method.microbatches=4", "pipeline.threads=1"),
    ],
    "sequential": ["method=sequential", "pipeline.stages=2", "pipeline.threads=1"],
    "DGL": ["pipeline.stages=2", "pipeline.threads=1"],
}
NEVER = float("inf")


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        seconds: to the accuracy; None: it was not reached.
        accuracy: of the last epoch.
    """

    rate: float
    seed: int
    seconds: float | None
    accuracy: float
    samples_per_second: float
    peak_memory_bytes: int


def main() -> None:
    arguments = parse()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in METHODS}
    for seed in range(arguments.seeds):
        for rate in arguments.rates:
            for name, words in METHODS.items():
                whole = [*arguments.overrides, *words]
                outcomes[name].append(train(whole, rate, seed, arguments.accuracy))
    rows = [row(name, outcomes[name]) for name in METHODS]
    sys.stdout.write(table(rows, arguments.accuracy) + "\n")
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        tree = {
            "command": " ".join(["python", *sys.argv]),
            "environment": {
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "accuracy": arguments.accuracy,
            "rows": rows,
        }
        Path(arguments.output).write_text(json.dumps(tree, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accuracy", type=float, default=0.97)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.03, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", help="JSON file of the results")
    parser.add_argument("overrides", nargs="*", default=["epochs=20"], help="of all methods")
    return parser.parse_args()


def train(words: list[str], rate: float, seed: int, accuracy: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        own = [f"optimizer.lr={rate}", f"seed={seed}", f"run_dir={run_dir}"]
        command = [sys.executable, "-m", "dglpipe", "train", *words, *own]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise RuntimeError(answer.stderr)
        summary = json.loads((run_dir / "summary.json").read_text())
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        batch = from_yaml((run_dir / "config.yaml").read_text()).batch_size
    last = len(summary["per_stage"]) - 1
    tests = [line for line in lines if line["kind"] == "test" and line["stage"] == last]
    steps = [line["step"] for line in tests if line["accuracy"] >= accuracy]
    speed = summary["throughput"]["samples_per_second"]
    return Outcome(
        rate=rate,
        seed=seed,
        seconds=min(steps) * batch / speed if steps else None,
        accuracy=summary["test"]["accuracy"][-1],
        samples_per_second=speed,
        peak_memory_bytes=max(stage["peak_memory_bytes"] for stage in summary["per_stage"]),
    )


def row(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """All runs of a method, and its own learning rate."""
    by_rate: dict[float, list[Outcome]] = {}
    for one in outcomes:
        by_rate.setdefault(one.rate, []).append(one)
    best = min(by_rate, key=lambda rate: median(map(_seconds, by_rate[rate])))
    return {"method": name, "rate": best, "runs": [asdict(one) for one in outcomes]}


def _seconds(outcome: Outcome) -> float:
    return NEVER if outcome.seconds is None else outcome.seconds


def table(rows: list[dict[str, Any]], accuracy: float) -> str:
    """Relative to backprop on one thread; a time itself says more of the machine."""
    lines = [f"time to {accuracy:.1%} at the last exit over that of {rows[0]['method']}"]
    base = None
    for one in rows:
        runs = [run for run in one["runs"] if run["rate"] == one["rate"]]
        seconds = sorted(NEVER if run["seconds"] is None else run["seconds"] for run in runs)
        base = median(seconds) if base is None else base
        middle, low, high = (value / base for value in (median(seconds), seconds[0], seconds[-1]))
        final = median(run["accuracy"] for run in runs)
        memory = max(run["peak_memory_bytes"] for run in runs) / 2**20
        lines.append(
            f"  {one['method']:24} {middle:6.2f} ({low:.2f} .. {high:.2f})   rate {one['rate']:g}, "
            f"last epoch {final:.1%}, {memory:.0f} MiB a process"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
