"""Throughput of local learning on several processes, beside backprop on the same machine.

    python benchmarks/throughput/throughput.py --repeats 5 --output FILE.json --picture FILE.png

The segments are measured first, and every method gets the cut whose busiest process has the least
time. Every schedule of pipelined backprop then runs with every number of micro-batches. The
pipelines close to the fastest run twice more; the fastest by the median is compared. All ways then
run in alternating rounds, each round starting with another way. A ratio is taken round by round, so
that a drift of the machine cancels. A baseline below 0.9 of its own bound is marked and gives no
ratio. Prints medians, ranges, peak memory and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import MARK, log, reaches_bound, spread
from benchmarks.throughput.pipelines import (
    SCHEDULES,
    backend,
    best_cut,
    bound,
    fits,
    has_segments,
    measure_segments,
    pipeline_cut,
    pipeline_words,
    run_parts,
)
from dglpipe.host import cores
from dglpipe.monitoring.throughput import FEWEST_STEPS
from dglpipe.partition.balance import SegmentCosts

NETWORKS = {
    "cnn6": ["model=cnn6", "model.width=64", "data.image_size=32"],
    "resnet18": ["model=resnet18", "data.image_size=32"],
    "narrow": ["model=cnn4", "model.width=16", "data.image_size=32"],
}
CLOSE = 0.9
"""Pipelines at this share of the fastest in the first round may be the fastest."""
BACKPROP, DDP = "backprop, 1 thread", "backprop, data-parallel"
THREADS, ONE, LOOP = "backprop, all threads", "DGL, 1 process", "DGL, plain loop"
DGL, PIPELINE = "DGL", "best pipeline of backprop"
BOUND, PIPELINE_BOUND = "DGL without communication", "bound of that pipeline"
PREDICTED = "DGL as planned"
MANY, FEW = "DGL, a process a segment", "DGL, the same on fewer processes"
VARIANT = "DGL with "
WAYS = (BACKPROP, THREADS, DDP, LOOP, ONE, DGL, BOUND, PREDICTED)
LOCAL = (ONE, DGL, BOUND)
"""The ways that show the cost of links and loop."""
PAIRS = {
    "DGL / without communication": (DGL, BOUND),
    "without communication / DGL on 1 process": (BOUND, ONE),
    "DGL / DGL on 1 process": (DGL, ONE),
    "DGL on 1 process / plain loop": (ONE, LOOP),
    "DGL / as planned": (DGL, PREDICTED),
    "DGL / backprop on 1 thread": (DGL, BACKPROP),
    "a process a segment / fewer processes": (MANY, FEW),
}
"""Ratios that need no mark."""


UNMEASURED = SegmentCosts((), (), (), ())


@dataclass(frozen=True)
class Result:
    """One run."""

    samples_per_second: float
    peak_memory: list[int] = field(default_factory=list)
    """Bytes of each stage; empty where it is not measured."""


@dataclass(frozen=True)
class Workload:
    """What all ways train."""

    network: str
    batch: int
    steps: int
    precision: str
    processes: int
    split: str
    costs: SegmentCosts = UNMEASURED
    """Seconds a step of the segments, with heads; empty before `measured`."""

    def measured(self) -> Workload:
        """The workload with the costs of its segments."""
        return replace(self, costs=measure_segments(self.words(1)))

    def words(self, processes: int, threads: int = 1) -> list[str]:
        """Overrides that all ways share."""
        return [
            *NETWORKS[self.network],
            *("data=synthetic", f"data.samples={self.batch * self.steps}"),
            *(f"batch_size={self.batch}", f"max_steps={self.steps}", "epochs=1"),
            *("evaluate.every=0", f"precision={self.precision}", f"pipeline.threads={threads}"),
            *(f"pipeline.processes={processes}", f"pipeline.backend={backend(self.processes)}"),
        ]

    def local(self, processes: int, variant: Sequence[str] = ()) -> list[str]:
        """K stages by local learning; an override of `variant` replaces the one of its key."""
        cut = [f"pipeline.stages={self.processes}", f"pipeline.split={self.cut()}"]
        replaced = {word.partition("=")[0] for word in variant}
        words = [*self.words(processes), *cut]
        return [*(word for word in words if word.partition("=")[0] not in replaced), *variant]

    def segments(self, processes: int) -> list[str]:
        """A stage a segment of `cnn6`, by local learning."""
        return [*self.words(processes), "pipeline.stages=6"]

    def pipeline(self, schedule: str, microbatches: int) -> list[str]:
        bounds = pipeline_cut(self.costs, schedule, self.processes)
        return [*self.words(self.processes), *pipeline_words(schedule, microbatches, bounds)]

    def cut(self) -> str:
        """The value of `pipeline.split` for local learning."""
        if self.split != "auto":
            return self.split
        return str(best_cut(self.costs, self.processes, max)[1:])


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output, arguments.picture)
    rows = []
    for network in arguments.networks:
        for batch in arguments.batch:
            for precision in arguments.precision:
                workload = Workload(
                    *(network, batch, arguments.steps, precision),
                    *(arguments.processes, arguments.split),
                )
                rows.append(measure(workload.measured(), arguments))
                log(table(rows[-1]))
                common.store(arguments.output, rows=rows)
                if arguments.picture:
                    draw(rows, Path(arguments.picture))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["cnn6"], choices=list(NETWORKS))
    parser.add_argument("--batch", nargs="+", type=int, default=[128])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--processes", type=int, default=2, help="K, a stage each")
    parser.add_argument("--split", default="auto", help="of local learning: auto, even, [3]")
    parser.add_argument("--microbatches", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--schedules", nargs="*", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--local", action="store_true", help="DGL and its bound alone")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), help="these ways and DGL alone")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=[],
        metavar="OVERRIDES",
        help="more ways of DGL, each its overrides in one argument: 'head=linear'",
    )
    parser.add_argument("--segments", action="store_true", help="also six stages of cnn6")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--picture", help="PNG file of the results")
    arguments = parser.parse_args(words)
    if arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps: got {arguments.steps}; throughput needs {FEWEST_STEPS} or more")
    if arguments.segments and arguments.processes >= 6:
        parser.error(f"--segments: needs --processes below 6; got {arguments.processes}")
    return arguments


def measure(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of a workload: all ways in alternating rounds."""
    screened = screen(workload, arguments)
    best = fastest(screened)
    results = common.rounds(ways_of(workload, arguments, best), arguments.repeats)
    rates = {name: [one.samples_per_second for one in all_] for name, all_ in results.items()}
    costs, processes = workload.costs, workload.processes
    return {
        "network": workload.network,
        "batch": workload.batch,
        "precision": workload.precision,
        "processes": processes,
        "split": workload.split,
        "cut": workload.cut(),
        "cuts_of_pipelines": {
            schedule: pipeline_cut(costs, schedule, processes)
            for schedule in arguments.schedules
            if has_segments(schedule, processes, costs)
        },
        "seconds_of_segments": asdict(costs),
        "load_average": os.getloadavg()[0],
        "best_pipeline": best,
        "screened_pipelines": screened,
        "samples_per_second": rates,
        "peak_memory_bytes": {
            name: max((max(one.peak_memory) for one in all_ if one.peak_memory), default=None)
            for name, all_ in results.items()
        },
        "ratios": compare(rates, {DDP: processes, THREADS: cores()}),
    }


def ways_of(
    workload: Workload, arguments: argparse.Namespace, best: str | None
) -> dict[str, Callable[[], Result]]:
    """The ways to run; `best` is the name of the fastest pipeline."""
    processes = workload.processes
    one, local = workload.words(1), workload.local(processes)
    ways: dict[str, Callable[[], Result]] = {
        BACKPROP: partial(train, [*one, "method=backprop"]),
        THREADS: partial(train, [*workload.words(1, cores()), "method=backprop"]),
        DDP: partial(train, [*one, "method=backprop", f"pipeline.replicas={processes}"]),
        LOOP: lambda: Result(run_parts([["loop", *workload.local(1)]])[0]),
        ONE: partial(train, workload.local(1)),
        DGL: partial(train, local),
        BOUND: lambda: Result(
            min(run_parts([["stage", str(j), *workload.local(1)] for j in range(processes)]))
        ),
        PREDICTED: lambda: predict([*local, "pipeline.cost=time"]),
    }
    if arguments.local or arguments.only:
        chosen = {DGL, *(arguments.only or LOCAL)}
        ways = {name: way for name, way in ways.items() if name in chosen}
    for variant in arguments.variants:
        ways[VARIANT + variant] = partial(train, workload.local(processes, variant.split()))
    if arguments.segments:
        ways[MANY] = partial(train, workload.segments(6))
        ways[FEW] = partial(train, workload.segments(processes))
    if best is not None:
        schedule, m = best.split(", m=")
        words = workload.pipeline(schedule, int(m))
        ways[PIPELINE] = partial(train, words)
        ways[PIPELINE_BOUND] = lambda: Result(bound(words, workload.batch, processes))
    return ways


def screen(workload: Workload, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Samples a second of every pipeline, once; three times if close to the fastest."""
    every = {
        f"{schedule}, m={m}": workload.pipeline(schedule, m)
        for schedule in arguments.schedules
        for m in arguments.microbatches
        if fits(schedule, m, workload.batch, workload.processes, workload.costs)
    }
    screened = {name: [train(words).samples_per_second] for name, words in every.items()}
    if len(every) > 1:
        close = CLOSE * max(first for (first,) in screened.values())
        near = [name for name, (first,) in screened.items() if first >= close]
        for _ in range(2):
            for name in near:
                screened[name].append(train(every[name]).samples_per_second)
    return screened


def fastest(screened: Mapping[str, Sequence[float]]) -> str | None:
    """By the median, of those that ran most often: a single fast run may be chance."""
    return max(
        screened, key=lambda name: (len(screened[name]), median(screened[name])), default=None
    )


def compare(
    rates: Mapping[str, Sequence[float]], copies: Mapping[str, int]
) -> dict[str, list[float] | str]:
    """Ratios by name, round by round; `MARK` where a baseline is below its bound.

    Args:
        copies: a way -> its bound as a multiple of backprop on one thread.
    """

    def over(one: str, other: str) -> list[float]:
        return common.ratios(rates[one], rates[other])

    found: dict[str, list[float] | str] = {
        name: over(*pair) for name, pair in PAIRS.items() if rates.keys() >= set(pair)
    }
    for name, count in copies.items():
        if rates.keys() >= {name, BACKPROP}:
            shares = [one / count for one in over(name, BACKPROP)]
            found[f"{name} / its bound"] = shares
            found[f"DGL / {name}"] = over(DGL, name) if reaches_bound(shares) else MARK
    variants = [name for name in rates if name.startswith(VARIANT)]
    found |= {f"{name} / DGL": over(name, DGL) for name in variants}
    if PIPELINE in rates:
        shares = over(PIPELINE, PIPELINE_BOUND)
        found["best pipeline / its bound"] = shares
        for name in (DGL, *variants):
            fair = reaches_bound(shares)
            found[f"{name} / best pipeline"] = over(name, PIPELINE) if fair else MARK
        found["DGL / bound of the best pipeline"] = over(DGL, PIPELINE_BOUND)
    return found


def train(words: Sequence[str]) -> Result:
    training = common.train(words)
    return Result(training.samples_per_second, training.peak_memory)


def predict(words: Sequence[str]) -> Result:
    """The prediction of `dglpipe plan` from measured stages."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        common.dglpipe_command("plan", *words, f"output={output}")
        return Result(json.loads(output.read_text())["predicted_samples_per_second"])


def table(row: Mapping[str, Any]) -> str:
    """Medians with minimum and maximum."""
    title = f"{row['network']}, batch {row['batch']}, {row['precision']}, K={row['processes']}"
    lines = [f"{title}, cut {row['split']}; best pipeline: {row['best_pipeline']}"]
    for name, values in row["samples_per_second"].items():
        peak = row["peak_memory_bytes"][name]
        memory = f"{peak / 2**20:8.0f} MiB a process" if peak else ""
        lines.append(f"  {name:42} {spread(values, 1):30}{memory}")
    for name, values in row["ratios"].items():
        lines.append(f"  {name:42} {values if isinstance(values, str) else spread(values)}")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Medians as bars, ranges as lines, a panel for each row."""
    measured = set().union(*(row["samples_per_second"] for row in rows))
    names = [PIPELINE, DDP, THREADS, BACKPROP, ONE, DGL, BOUND]
    names += [name for name in (FEW, MANY) if name in measured]
    colours = dict.fromkeys(names, "#4c78a8") | dict.fromkeys(names[:4], "#f58518")
    colours[BOUND] = "#d9d9d9"
    figure = common.new_figure(4.5 * len(rows) + 2, 3.4)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        rates = row["samples_per_second"]
        first = next(name for name in (BACKPROP, ONE, DGL) if name in rates)
        # A way that this row lacks is drawn as 0.
        missing = [0.0] * len(rates[first])
        over = [common.ratios(rates.get(name, missing), rates[first]) for name in names]
        middle = [median(values) for values in over]
        below = [m - min(values) for m, values in zip(middle, over, strict=True)]
        above = [max(values) - m for m, values in zip(middle, over, strict=True)]
        labels = [label(name, row["processes"]) for name in names]
        axes.barh(labels, middle, xerr=[below, above], color=list(colours.values()))
        axes.set_title(f"{row['network']}, batch {row['batch']}, {row['precision']}")
        axes.set_xlabel(f"samples a second over {first}")
        if axes is not figure.axes[0]:
            axes.set_yticklabels([])
    figure.savefig(picture, dpi=110)


def label(name: str, processes: int) -> str:
    """A way with its stages and processes."""
    layouts = {ONE: (processes, 1), DGL: (processes, processes), FEW: (6, processes), MANY: (6, 6)}
    if name == BOUND:
        return f"DGL, {processes} stages without links"
    if name not in layouts:
        return name
    count, on = layouts[name]
    return f"DGL, {count} stages on {on} process{'es' * (on > 1)}"


if __name__ == "__main__":
    main()
