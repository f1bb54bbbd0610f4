"""Seconds of training to a stated accuracy, method by method.

    python benchmarks/time_to_accuracy/time_to_accuracy.py --output FILE.json

The segments are measured first, and every method gets the cut whose busiest process has the least
time. Every schedule of pipelined backprop runs with every number of micro-batches; the fastest is
compared. Every method then trains with every learning rate and seed on the same data, network and
schedule, the methods alternating. A method keeps the rate that is first at the accuracy (median
over the seeds). A time is the samples seen until then over the samples a second of the same run in
its steady state, so process start and evaluation do not count. The accuracy is that of the last
exit on the test images, after each epoch. A way of backprop below 0.9 of its own bound is marked
and gives no ratio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import MARK, log, spread
from benchmarks.throughput.pipelines import (
    SCHEDULES,
    best_cut,
    bound,
    measure_segments,
    pipeline_cut,
    pipeline_words,
)
from benchmarks.time_to_accuracy.outcomes import NEVER, chosen, seconds, seconds_of, underperforms
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.host import cores
from dglpipe.partition.balance import SegmentCosts

ONE, THREADS, DDP = "backprop, 1 thread", "backprop, all threads", "backprop, data-parallel"
PIPELINE = "backprop, pipeline"
MANY = "DGL, a stage a segment"
PROCESSES = 2
SHORT = ["evaluate.every=0", "epochs=4"]
"""Enough epochs to measure the samples a second."""


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        seconds: to the accuracy; None: it was not reached.
        accuracy: of the last epoch.
        curve: seconds, accuracy of the last exit, after every epoch.
    """

    rate: float
    seed: int
    seconds: float | None
    accuracy: float
    samples_per_second: float
    peak_memory_bytes: int
    curve: list[tuple[float, float]]


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    costs = measure_segments([*arguments.overrides, "pipeline.threads=1"])
    screened = screen(arguments, costs)
    schedule, m = max(screened, key=lambda key: median(screened[key]))
    methods = ways(costs, schedule, m)
    short = [*arguments.overrides, *methods[PIPELINE], *SHORT]
    pipeline_bound = bound(short, batch_size(short), PROCESSES)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for rate in arguments.rates:
            for name, words in methods.items():
                whole = [*arguments.overrides, *words]
                outcomes[name].append(train(whole, rate, seed, arguments.accuracy))
        rows = [row(name, runs) for name, runs in outcomes.items()]
        mark(rows, pipeline_bound)
        common.store(
            arguments.output,
            accuracy=arguments.accuracy,
            best_pipeline={"schedule": schedule, "microbatches": m},
            screened_pipelines={f"{s}, m={m}": rates for (s, m), rates in screened.items()},
            rows=rows,
        )
    log(table(rows, arguments.accuracy))
    if arguments.output:
        draw(rows, Path(arguments.output).with_suffix(".png"))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--accuracy", type=float, default=0.97)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--microbatches", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("overrides", nargs="*", default=["epochs=20"], help="of all methods")
    return parser.parse_args(words)


def ways(costs: SegmentCosts, schedule: str, microbatches: int) -> dict[str, list[str]]:
    """The overrides of every method."""
    two = [f"pipeline.processes={PROCESSES}", "pipeline.threads=1"]
    split = best_cut(costs, PROCESSES, max)[1:]
    cut = [f"pipeline.stages={PROCESSES}", f"pipeline.split={split}", *two]
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
    words = pipeline_words(schedule, microbatches, pipeline_cut(costs, schedule, PROCESSES))
    return [*words, f"pipeline.processes={PROCESSES}", "pipeline.threads=1"]


def screen(
    arguments: argparse.Namespace, costs: SegmentCosts
) -> dict[tuple[str, int], list[float]]:
    """Samples a second of every pipeline with every seed."""
    rates: dict[tuple[str, int], list[float]] = {}
    for seed in range(arguments.seeds):
        for schedule in arguments.schedules:
            for m in arguments.microbatches:
                words = [*arguments.overrides, *pipeline(costs, schedule, m), *SHORT]
                outcome = train(words, arguments.rates[0], seed, 1.0)
                rates.setdefault((schedule, m), []).append(outcome.samples_per_second)
    return rates


def train(words: Sequence[str], rate: float, seed: int, accuracy: float) -> Outcome:
    training = common.train([*words, f"optimizer.lr={rate}", f"seed={seed}"])
    last = len(training.peak_memory) - 1
    tests = [one for one in training.metrics if one["kind"] == "test" and one["stage"] == last]
    speed = training.samples_per_second
    rows = batch_size(words)
    curve = [(one["step"] * rows / speed, one["accuracy"]) for one in tests]
    return Outcome(
        rate=rate,
        seed=seed,
        seconds=min((time for time, found in curve if found >= accuracy), default=None),
        accuracy=training.accuracy[-1],
        samples_per_second=speed,
        peak_memory_bytes=max(training.peak_memory),
        curve=curve,
    )


def batch_size(words: Sequence[str]) -> int:
    return compose(parse_arguments(list(words))).batch_size


def row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All runs of a method, and the learning rate that it keeps."""
    runs = [asdict(one) for one in outcomes]
    by_rate: dict[float, list[float]] = {}
    for run in runs:
        by_rate.setdefault(run["rate"], []).append(seconds_of(run))
    best = min(by_rate, key=lambda rate: median(by_rate[rate]))
    return {"method": name, "rate": best, "of_its_bound": None, "runs": runs}


def mark(rows: Sequence[dict[str, Any]], pipeline_bound: float) -> None:
    """Sets what share of its own bound each way of backprop reaches."""
    speed = {
        one["method"]: median(run["samples_per_second"] for run in chosen(one)) for one in rows
    }
    bounds = {PIPELINE: pipeline_bound, DDP: PROCESSES * speed[ONE], THREADS: cores() * speed[ONE]}
    for one in rows:
        name = one["method"]
        one["of_its_bound"] = speed[name] / bounds[name] if name in bounds else None


def table(rows: Sequence[dict[str, Any]], accuracy: float) -> str:
    """Times over that of backprop on one thread, with learning rate, accuracy and bound."""
    lines = [f"time to {accuracy:.1%} at the last exit over that of {rows[0]['method']}"]
    base = median(seconds(rows[0]))
    for one in rows:
        rates = sorted({run["rate"] for run in one["runs"]})
        edge = len(rates) > 1 and one["rate"] in (rates[0], rates[-1])
        final = median(run["accuracy"] for run in chosen(one))
        rate = f"rate {one['rate']:g}{' (the last that was tried)' if edge else ''}"
        share = one["of_its_bound"]
        bounded = "" if share is None else f", {share:.2f} of its bound"
        lines.append(
            f"  {one['method']:24} {ratio(one, base):26} {rate}, last epoch {final:.1%}{bounded}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Accuracy over time with the first seed, a line for each method; the time is over that of
    all epochs of the first method."""
    figure = common.new_figure(6, 3.8)
    axes = figure.subplots()
    whole = chosen(rows[0])[0]["curve"][-1][0]
    for one in rows:
        times, accuracies = zip(*chosen(one)[0]["curve"], strict=True)
        over = [time / whole for time in times]
        percent = [100 * found for found in accuracies]
        axes.plot(over, percent, marker="o", markersize=3, label=one["method"])
    axes.set_xlabel(f"time over all epochs of {rows[0]['method']}")
    axes.set_ylabel("test accuracy of the last exit, %")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=110)


def ratio(row: Mapping[str, Any], base: float) -> str:
    """Times of a method over `base`, or why there is no ratio."""
    if underperforms(row):
        return MARK
    if base == NEVER:
        return "no ratio: backprop on one thread did not reach the accuracy"
    return spread(one / base for one in seconds(row))


if __name__ == "__main__":
    main()
