"""Accuracy of asynchronous learning by slow-down and by buffer size, on the digits.

    python benchmarks/async/accuracy.py --output FILE.json --picture FILE.png

`experiment=async_slowdown_digits`, simulated and in real processes: one stage slowed at a time, and
several buffer sizes without a slow stage; beside synchronous learning of the same stages. Last
exit, last epoch, every seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import interval, log

EXPERIMENT = "experiment=async_slowdown_digits"
STAGES = 4
SYNCHRONOUS = ("method.buffer=1", "method.order=sequential", "method.warmup=false")
"""Equal to `method=dgl` bit for bit, with the same optimizer."""


@dataclass(frozen=True)
class Run:
    """One training."""

    kind: str
    """`synchronous`, `simulated` or `real`."""
    slowdown: float
    slow_stage: int | None
    buffer: int
    seed: int
    accuracy: float
    """Of the last exit after the last epoch."""
    mean_age: float | None
    """Age of what the last stage read, in outputs."""


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output, arguments.picture)
    runs = []
    if arguments.add:
        runs += [Run(**run) for run in json.loads(Path(arguments.add).read_text())["runs"]]
    for seed in range(arguments.seeds):
        if not arguments.add:
            runs.append(train("synchronous", 1.0, None, 0, seed, arguments.overrides))
        for kind in arguments.kinds:
            for slowdown, stage, buffer in settings(arguments):
                runs.append(train(kind, slowdown, stage, buffer, seed, arguments.overrides))
    log(table(runs))
    common.store(arguments.output, runs=[asdict(run) for run in runs])
    if arguments.picture:
        draw(runs, Path(arguments.picture))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--slowdowns", nargs="+", type=float, default=[1.2, 1.5, 2.0])
    parser.add_argument("--buffers", nargs="+", type=int, default=[1, 5, 20, 50])
    parser.add_argument("--kinds", nargs="+", default=["simulated", "real"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--add", help="JSON file of earlier runs to include")
    parser.add_argument("--picture", help="PNG file of the results")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    return parser.parse_args(words)


def settings(arguments: argparse.Namespace) -> list[tuple[float, int | None, int]]:
    """S, slow stage and M of each run."""
    most = max(arguments.buffers)
    sizes = [(1.0, None, size) for size in arguments.buffers]
    slow = [(factor, stage, most) for factor in arguments.slowdowns for stage in range(STAGES)]
    return [*sizes, *slow]


def train(
    kind: str, slowdown: float, stage: int | None, buffer: int, seed: int, overrides: list[str]
) -> Run:
    words = list(SYNCHRONOUS)
    if kind != "synchronous":
        factors = [slowdown if j == stage else 1.0 for j in range(STAGES)]
        words = [f"method.simulate={str(kind == 'simulated').lower()}", f"method.buffer={buffer}"]
        words += [f"method.slowdown={factors}"]
    words += [f"seed={seed}", "evaluate.every=0", *overrides]
    training = common.train([EXPERIMENT, *words])
    staleness = training.summary["staleness"]
    age = staleness[-1]["mean_age"] if staleness else None
    return Run(kind, slowdown, stage, buffer, seed, training.accuracy[-1], age)


def groups(runs: list[Run]) -> dict[tuple[str, float, int | None, int], list[Run]]:
    found: dict[tuple[str, float, int | None, int], list[Run]] = {}
    for run in runs:
        found.setdefault((run.kind, run.slowdown, run.slow_stage, run.buffer), []).append(run)
    return found


def table(runs: list[Run]) -> str:
    """Means over the seeds, with minimum and maximum."""
    lines = []
    for (kind, slowdown, stage, buffer), alike in groups(runs).items():
        values = [run.accuracy for run in alike]
        ages = [run.mean_age for run in alike if run.mean_age is not None]
        what = f"{kind:11} M={buffer:<3} S={slowdown:<4g} stage {'-' if stage is None else stage}"
        age = f"   mean age at the last {mean(ages):.1f}" if ages else ""
        lines.append(f"{what}  {interval(mean(values), min(values), max(values), 4)}{age}")
    return "\n".join(lines)


def draw(runs: list[Run], picture: Path) -> None:
    """Accuracy against S, and against M, with the range over the seeds."""
    figure = common.new_figure(9, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    synchronous = [run.accuracy for run in runs if run.kind == "synchronous"]
    most = max(run.buffer for run in runs)
    for axes in (left, right):
        axes.axhspan(
            min(synchronous), max(synchronous), color="#d9d9d9", label="synchronous, spread"
        )
    for kind, colour in (("simulated", "#4c78a8"), ("real", "#f58518")):
        own = [run for run in runs if run.kind == kind]
        by_s = _points([(run.slowdown, run.accuracy) for run in own if run.buffer == most])
        by_m = _points([(run.buffer, run.accuracy) for run in own if run.slow_stage is None])
        for axes, points in ((left, by_s), (right, by_m)):
            if points:
                at = list(points)
                middle = [mean(points[x]) for x in at]
                below = [m - min(points[x]) for m, x in zip(middle, at, strict=True)]
                above = [max(points[x]) - m for m, x in zip(middle, at, strict=True)]
                axes.errorbar(at, middle, [below, above], color=colour, capsize=3, label=kind)
    left.set_xlabel(f"S, each stage slowed in turn, M = {most}")
    right.set_xlabel("M, no stage slowed")
    right.set_xscale("log")
    left.set_ylabel("accuracy of the last exit")
    left.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def _points(pairs: list[tuple[float, float]]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for x, y in sorted(pairs):
        found.setdefault(x, []).append(y)
    return found


if __name__ == "__main__":
    main()
