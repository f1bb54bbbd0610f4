"""Seconds of training to a stated accuracy, method by method.

    python benchmarks/time_to_accuracy/time_to_accuracy.py --output FILE.json

First the segments are timed, for cuts whose busiest process has least to do, and every schedule of
pipelined backprop runs with every number of micro-batches; the fastest goes on. Then every method
trains with every learning rate and seed on the same data, network and schedule, in turn; the rate
that comes first to the accuracy (median over the seeds) is a method's own. A time is the samples
seen until then over the samples a second of the same run in its steady state, so starting
processes and evaluating do not count. The accuracy is that of the last exit on the test images,
after each epoch. A way of backprop that makes less than 0.9 of the samples a second that are its
own bound is marked, and gives no ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import from_yaml
from dglpipe.host import cores
from dglpipe.partition.balance import SegmentCosts

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "throughput")]

import record
import throughput
from throughput import SCHEDULES

ONE, THREADS, DDP = "backprop, 1 thread", "backprop, all threads", "backprop, data-parallel"
PIPELINE = "backprop, pipeline"
MANY = "DGL, a stage a segment"
PROCESSES = 2
NEVER = float("inf")
SHORT = ["evaluate.every=0", "epochs=4"]
"""Long enough to know a speed."""


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
    record.prepare(arguments.output)
    costs = throughput.timed([*arguments.overrides, "pipeline.threads=1"])
    screened = screen(arguments, costs)
    schedule, m = max(screened, key=lambda key: median(screened[key]))
    methods = ways(costs, schedule, m)
    short = [*arguments.overrides, *methods[PIPELINE], *SHORT]
    bound = throughput.bound(short, compose(parse_arguments(short)).batch_size, PROCESSES)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for rate in arguments.rates:
            for name, words in methods.items():
                whole = [*arguments.overrides, *words]
                outcomes[name].append(train(whole, rate, seed, arguments.accuracy))
        rows = [row(name, runs) for name, runs in outcomes.items()]
        mark(rows, bound)
        record.store(
            arguments.output,
            accuracy=arguments.accuracy,
            best_pipeline={"schedule": schedule, "microbatches": m},
            screened_pipelines={f"{s}, m={m}": rates for (s, m), rates in screened.items()},
            rows=rows,
        )
    sys.stdout.write(table(rows, arguments.accuracy) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accuracy", type=float, default=0.97)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--microbatches", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--output", help="JSON file of the results")
    parser.add_argument("overrides", nargs="*", default=["epochs=20"], help="of all methods")
    return parser.parse_args()


def ways(costs: SegmentCosts, schedule: str, microbatches: int) -> dict[str, list[str]]:
    """The overrides of every method."""
    local = throughput.best_cut(costs, PROCESSES, max)
    two = [f"pipeline.processes={PROCESSES}", "pipeline.threads=1"]
    cut = [f"pipeline.stages={PROCESSES}", f"pipeline.split={local[1:]}", *two]
    return {
        ONE: ["method=backprop", "pipeline.threads=1"],
        THREADS: ["method=backprop", f"pipeline.threads={cores()}"],
        DDP: ["method=backprop", f"pipeline.replicas={PROCESSES}", "pipeline.threads=1"],
        PIPELINE: pipeline(costs, schedule, microbatches),
        "sequential": ["method=sequential", *cut],
        "DGL": cut,
        MANY: [f"pipeline.stages={len(costs.segments)}", *two],
    }


def pipeline(costs: SegmentCosts, schedule: str, microbatches: int) -> list[str]:
    bounds = throughput.pipeline_cut(costs, schedule, PROCESSES)
    words = throughput.pipeline(schedule, microbatches, bounds)
    return [*words, f"pipeline.processes={PROCESSES}", "pipeline.threads=1"]


def screen(
    arguments: argparse.Namespace, costs: SegmentCosts
) -> dict[tuple[str, int], list[float]]:
    """Samples a second of every pipeline, of every seed."""
    rates: dict[tuple[str, int], list[float]] = {}
    for seed in range(arguments.seeds):
        for schedule in arguments.schedules:
            for m in arguments.microbatches:
                words = [*arguments.overrides, *pipeline(costs, schedule, m), *SHORT]
                outcome = train(words, arguments.rates[0], seed, 1.0)
                rates.setdefault((schedule, m), []).append(outcome.samples_per_second)
    return rates


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
    runs = [asdict(one) for one in outcomes]
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for run in runs:
        by_rate.setdefault(run["rate"], []).append(run)
    best = min(by_rate, key=lambda rate: median(map(_seconds, by_rate[rate])))
    return {"method": name, "rate": best, "of_its_bound": None, "runs": runs}


def mark(rows: list[dict[str, Any]], pipeline_bound: float) -> None:
    """Tells every way of backprop what part of its own bound it reaches."""
    speed = {
        one["method"]: median(run["samples_per_second"] for run in chosen(one)) for one in rows
    }
    bounds = {PIPELINE: pipeline_bound, DDP: PROCESSES * speed[ONE], THREADS: cores() * speed[ONE]}
    for one in rows:
        name = one["method"]
        one["of_its_bound"] = speed[name] / bounds[name] if name in bounds else None


def chosen(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs with the method's own rate."""
    return [run for run in row["runs"] if run["rate"] == row["rate"]]


def table(rows: list[dict[str, Any]], accuracy: float) -> str:
    """Relative to backprop on one thread; a time itself says more of the machine."""
    lines = [f"time to {accuracy:.1%} at the last exit over that of {rows[0]['method']}"]
    base = median(map(_seconds, chosen(rows[0])))
    for one in rows:
        rates = sorted({run["rate"] for run in one["runs"]})
        edge = len(rates) > 1 and one["rate"] in (rates[0], rates[-1])
        final = median(run["accuracy"] for run in chosen(one))
        rate = f"rate {one['rate']:g}{' (the last that was tried)' if edge else ''}"
        reached = one["of_its_bound"]
        share = "" if reached is None else f", {reached:.2f} of its bound"
        lines.append(
            f"  {one['method']:24} {_ratio(one, base):26} {rate}, last epoch {final:.1%}{share}"
        )
    return "\n".join(lines)


def _ratio(row: dict[str, Any], base: float) -> str:
    if row["of_its_bound"] is not None and row["of_its_bound"] < throughput.UNDERPERFORMS:
        return throughput.MARK
    if base == NEVER:
        return "nothing to compare with"
    seconds = sorted(map(_seconds, chosen(row)))
    middle, low, high = (one / base for one in (median(seconds), seconds[0], seconds[-1]))
    return f"{middle:6.2f} ({low:.2f} .. {high:.2f})"


def _seconds(run: dict[str, Any]) -> float:
    return NEVER if run["seconds"] is None else float(run["seconds"])


if __name__ == "__main__":
    main()
