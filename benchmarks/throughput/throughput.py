"""Local learning on several processes beside what the same machine does otherwise.

    python benchmarks/throughput/throughput.py --repeats 5 --output FILE.json --picture FILE.png

First the segments are timed, and every method is cut so that its busiest process has least to
do. Then every schedule of pipelined backprop runs with every number of micro-batches; those close
to the fastest twice more, and the fastest by the median goes on. Then all ways run in turn, again
and again, each round beginning with another. Prints medians, spread, peak memory and ratios; a
ratio is taken round by round, so that a drift of the machine cancels. A baseline that does not
reach 0.9 of its own bound is marked, and gives no ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dglpipe.host import cores
from dglpipe.monitoring.throughput import FEWEST_STEPS
from dglpipe.partition.balance import SegmentCosts

sys.path.append(str(Path(__file__).parents[1]))

import record

PARTS = Path(__file__).parent / "parts.py"
NETWORKS = {
    "cnn6": ["model=cnn6", "model.width=64", "data.image_size=32"],
    "resnet18": ["model=resnet18", "data.image_size=32"],
    "narrow": ["model=cnn4", "model.width=16", "data.image_size=32"],
}
SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "zbv": 2}
"""Stages of a process."""
UNDERPERFORMS = 0.9
CLOSE = 0.9
"""Of the fastest pipeline's speed in the first round: such a one may be the fastest."""
MARK = "baseline underperforms"
BACKPROP, DDP = "backprop, 1 thread", "backprop, data-parallel"
THREADS, ONE, LOOP = "backprop, all threads", "DGL, 1 process", "DGL, plain loop"
DGL, PIPELINE = "DGL", "best pipeline of backprop"
BOUND, PIPELINE_BOUND = "DGL without communication", "bound of that pipeline"
PREDICTED = "DGL as planned"
MANY, FEW = "DGL, a process a segment", "DGL, the same on fewer processes"
VARIANT = "DGL with "
WAYS = (BACKPROP, THREADS, DDP, LOOP, ONE, DGL, BOUND, PREDICTED)
LOCAL = (ONE, DGL, BOUND)
"""Enough to know what links and loop cost."""


@dataclass
class Result:
    """One run."""

    samples_per_second: float
    peak_memory: list[int] = field(default_factory=list)
    """Bytes, by stage, where it was measured."""


NOTHING = SegmentCosts((), (), (), ())


@dataclass(frozen=True)
class Work:
    """What all ways do the same."""

    network: str
    batch: int
    steps: int
    precision: str
    processes: int
    split: str
    costs: SegmentCosts
    """Of its segments, in seconds a step, heads and all."""

    def words(self, processes: int, threads: int = 1) -> list[str]:
        return [
            *NETWORKS[self.network],
            *("data=synthetic", f"data.samples={self.batch * self.steps}"),
            *(f"batch_size={self.batch}", f"max_steps={self.steps}", "epochs=1"),
            *("evaluate.every=0", f"precision={self.precision}", f"pipeline.threads={threads}"),
            *(f"pipeline.processes={processes}", f"pipeline.backend={backend(self.processes)}"),
        ]

    def local(self, processes: int, variant: Sequence[str] = ()) -> list[str]:
        """K stages by local learning; what `variant` sets it sets in place of the common words."""
        cut = [f"pipeline.stages={self.processes}", f"pipeline.split={self.cut()}"]
        own = {word.partition("=")[0] for word in variant}
        common = [*self.words(processes), *cut]
        return [*(word for word in common if word.partition("=")[0] not in own), *variant]

    def segments(self, processes: int) -> list[str]:
        """A stage a segment of `cnn6`, by local learning."""
        return [*self.words(processes), "pipeline.stages=6"]

    def pipeline(self, schedule: str, microbatches: int) -> list[str]:
        bounds = pipeline_cut(self.costs, schedule, self.processes)
        return [*self.words(self.processes), *pipeline(schedule, microbatches, bounds)]

    def cut(self) -> str:
        """Of local learning, for `pipeline.split`."""
        if self.split != "auto":
            return self.split
        return str(best_cut(self.costs, self.processes, max)[1:])


def pipeline(schedule: str, microbatches: int, bounds: Sequence[int]) -> list[str]:
    """Pipelined backprop with that cut."""
    return [
        *("method=backprop", f"method.schedule={schedule}", f"method.microbatches={microbatches}"),
        *(f"pipeline.stages={len(bounds)}", f"pipeline.split={list(bounds[1:])}"),
    ]


def pipeline_cut(costs: SegmentCosts, schedule: str, processes: int) -> list[int]:
    """First segment of every stage, for the least work of the busiest process."""

    def busiest(seconds: Sequence[float]) -> float:
        return max(placed(schedule, seconds, processes))

    return best_cut(costs.without_heads(), SCHEDULES[schedule] * processes, busiest)


def best_cut(
    costs: SegmentCosts, count: int, busiest: Callable[[Sequence[float]], float]
) -> list[int]:
    """First segment of every one of `count` stages, of all cuts the one with least to do for
    whom `busiest` finds, among stages that take so many seconds."""
    cuts = itertools.combinations(range(1, len(costs.segments)), count - 1)
    return min(([0, *cut] for cut in cuts), key=lambda bounds: busiest(costs.stages(bounds)))


def placed(schedule: str, seconds: Sequence[float], processes: int) -> list[float]:
    """What every process has to do of stages that take so many seconds."""
    return [
        sum(seconds[j] for j in stages(schedule, process, len(seconds), processes))
        for process in range(processes)
    ]


def backend(processes: int) -> str:
    """Of all ways: GPUs where each of the processes can have one, else none has."""
    return "nccl" if torch.cuda.device_count() >= processes else "gloo"


def main() -> None:
    arguments = parse()
    record.prepare(arguments.output, arguments.picture)
    rows = []
    for network in arguments.networks:
        for batch in arguments.batch:
            for precision in arguments.precision:
                work = Work(
                    *(network, batch, arguments.steps, precision),
                    *(arguments.processes, arguments.split, NOTHING),
                )
                rows.append(measure(replace(work, costs=timed(work.words(1))), arguments))
                sys.stdout.write(table(rows[-1]) + "\n")
                sys.stdout.flush()
                record.store(arguments.output, rows=rows)
                if arguments.picture:
                    draw(rows, Path(arguments.picture))


def timed(words: list[str]) -> SegmentCosts:
    """The segments of a network and the heads between them, by the timer."""
    out = run([sys.executable, str(PARTS), "times", *words])
    return SegmentCosts(links=(), **{key: tuple(values) for key, values in json.loads(out).items()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
    parser.add_argument("--output", help="JSON file of the results")
    parser.add_argument("--picture", help="PNG file of the results")
    arguments = parser.parse_args()
    if arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps: {arguments.steps}, of fewer than {FEWEST_STEPS} nothing is told")
    if arguments.segments and arguments.processes >= 6:
        parser.error(f"--segments: six stages on six processes, not beside {arguments.processes}")
    return arguments


def measure(work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways, `repeats` times in turn."""
    screened = screen(work, arguments)
    ways: dict[str, Callable[[], Result]] = {
        BACKPROP: lambda: train([*work.words(1), "method=backprop"]),
        THREADS: lambda: train([*work.words(1, cores()), "method=backprop"]),
        DDP: lambda: train(
            [*work.words(1), "method=backprop", f"pipeline.replicas={work.processes}"]
        ),
        LOOP: lambda: Result(parts([["loop", *work.local(1)]])[0]),
        ONE: lambda: train(work.local(1)),
        DGL: lambda: train(work.local(work.processes)),
        BOUND: lambda: Result(
            min(parts([["stage", str(j), *work.local(1)] for j in range(work.processes)]))
        ),
        PREDICTED: lambda: predicted([*work.local(work.processes), "pipeline.cost=time"]),
    }
    if arguments.local or arguments.only:
        chosen = {DGL, *(arguments.only or LOCAL)}
        ways = {name: way for name, way in ways.items() if name in chosen}
    for variant in arguments.variants:
        ways[VARIANT + variant] = partial(train, work.local(work.processes, variant.split()))
    if arguments.segments:
        ways[MANY] = lambda: train(work.segments(6))
        ways[FEW] = lambda: train(work.segments(work.processes))
    best = fastest(screened)
    if best is not None:
        schedule, m = best.split(", m=")
        ways[PIPELINE] = lambda: train(work.pipeline(schedule, int(m)))
        ways[PIPELINE_BOUND] = lambda: Result(
            bound(work.pipeline(schedule, int(m)), work.batch, work.processes)
        )
    results: dict[str, list[Result]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(arguments.repeats):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            results[name].append(ways[name]())
    rates = {name: [one.samples_per_second for one in all_] for name, all_ in results.items()}
    return {
        "network": work.network,
        "batch": work.batch,
        "precision": work.precision,
        "processes": work.processes,
        "split": work.split,
        "cut": work.cut(),
        "cuts_of_pipelines": {
            schedule: pipeline_cut(work.costs, schedule, work.processes)
            for schedule in arguments.schedules
            if possible(schedule, work)
        },
        "seconds_of_segments": asdict(work.costs),
        "load_average": os.getloadavg()[0],
        "best_pipeline": best,
        "screened_pipelines": screened,
        "samples_per_second": rates,
        "peak_memory_bytes": {
            name: max((max(one.peak_memory) for one in all_ if one.peak_memory), default=None)
            for name, all_ in results.items()
        },
        "ratios": ratios(rates, {DDP: work.processes, THREADS: cores()}),
    }


def screen(work: Work, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Samples a second of every pipeline once; of those that come close to the fastest, three
    times, in turn."""
    every = {
        f"{schedule}, m={m}": work.pipeline(schedule, m)
        for schedule in arguments.schedules
        for m in arguments.microbatches
        if fits(schedule, m, work)
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
    """By the median, of those that ran most often: one run alone may have been a lucky one."""
    return max(
        screened, key=lambda name: (len(screened[name]), median(screened[name])), default=None
    )


def fits(schedule: str, m: int, work: Work) -> bool:
    """Whether the schedule takes so many micro-batches."""
    if work.batch // m < 2 or not possible(schedule, work):
        return False
    if schedule == "1f1b":
        return m >= work.processes
    return schedule != "interleaved_1f1b" or m % work.processes == 0


def possible(schedule: str, work: Work) -> bool:
    """Whether there are as many segments as the schedule has stages."""
    return SCHEDULES[schedule] * work.processes <= len(work.costs.segments)


def bound(words: Sequence[str], batch: int, processes: int) -> float:
    """Samples a second of a pipeline whose transfers and waiting cost nothing but its bubbles.

    Its stages, each alone on the machine, in micro-batches of its size; the busiest process
    works for m / (m + (P - 1) / v) of the time with v stages a process (zbv: always). On a CPU
    the cores may limit it more: what all stages take together, divided by them.
    """
    given = dict(word.split("=", 1) for word in words)
    schedule, m = given["method.schedule"], int(given["method.microbatches"])
    count = SCHEDULES[schedule] * processes
    # In the other stages' own words: one process draws the network with this cut.
    words = [word for word in words if not word.startswith("pipeline.processes")]
    seconds = [batch / parts([["stage", str(j), *words]])[0] for j in range(count)]
    idle = 0.0 if schedule == "zbv" else (processes - 1) / SCHEDULES[schedule]
    least = max(placed(schedule, seconds, processes)) * (m + idle) / m
    if backend(processes) == "gloo":
        least = max(least, sum(seconds) / cores())
    return batch / least


def stages(schedule: str, process: int, count: int, processes: int) -> Sequence[int]:
    if schedule == "zbv":
        return process, count - 1 - process
    return range(process, count, processes)


def ratios(
    rates: dict[str, list[float]], copies: Mapping[str, int]
) -> dict[str, list[float] | str]:
    """By name, round by round; a text where a baseline is not at its best.

    Args:
        copies: of backprop on one thread that a way has for its bound.
    """

    def over(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[one], rates[other], strict=True)]

    pairs = {
        "DGL / without communication": (DGL, BOUND),
        "without communication / DGL on 1 process": (BOUND, ONE),
        "DGL / DGL on 1 process": (DGL, ONE),
        "DGL on 1 process / plain loop": (ONE, LOOP),
        "DGL / as planned": (DGL, PREDICTED),
        "DGL / backprop on 1 thread": (DGL, BACKPROP),
        "a process a segment / fewer processes": (MANY, FEW),
    }
    result: dict[str, list[float] | str] = {
        name: over(*pair) for name, pair in pairs.items() if rates.keys() >= set(pair)
    }
    for name, count in copies.items():
        if rates.keys() >= {name, BACKPROP}:
            reached = [one / count for one in over(name, BACKPROP)]
            result[f"{name} / its bound"] = reached
            fair = median(reached) >= UNDERPERFORMS
            result[f"DGL / {name}"] = over(DGL, name) if fair else MARK
    variants = [name for name in rates if name.startswith(VARIANT)]
    result |= {f"{name} / DGL": over(name, DGL) for name in variants}
    if PIPELINE in rates:
        reached = over(PIPELINE, PIPELINE_BOUND)
        result["best pipeline / its bound"] = reached
        fair = median(reached) >= UNDERPERFORMS
        for name in (DGL, *variants):
            told: list[float] | str = over(name, PIPELINE) if fair else MARK
            result[f"{name} / best pipeline"] = told
        result["DGL / bound of the best pipeline"] = over(DGL, PIPELINE_BOUND)
    return result


def train(words: list[str]) -> Result:
    """Samples a second and peak memory as `summary.json` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run([sys.executable, "-m", "dglpipe", "train", *words, f"run_dir={run_dir}"])
        summary = json.loads((run_dir / "summary.json").read_text())
    memory = [stage["peak_memory_bytes"] for stage in summary["per_stage"]]
    return Result(float(summary["throughput"]["samples_per_second"]), memory)


def predicted(words: list[str]) -> Result:
    """What `dglpipe plan` says of measured stages."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        run([sys.executable, "-m", "dglpipe", "plan", *words, f"output={output}"])
        return Result(json.loads(output.read_text())["predicted_samples_per_second"])


def parts(commands: Sequence[list[str]]) -> list[float]:
    """Samples a second of parts that run at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MEETING": folder, "COUNT": str(len(commands))}
        processes = [
            subprocess.Popen(
                [sys.executable, str(PARTS), *words],
                env={**environment, "PLACE": str(at)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for at, words in enumerate(commands)
        ]
        told = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, told, strict=True):
        if process.returncode:
            raise RuntimeError(error)
    return [float(out) for out, _ in told]


def run(command: list[str]) -> str:
    """What the command wrote."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return answer.stdout


def table(row: dict[str, Any]) -> str:
    """Medians with minimum and maximum."""
    title = f"{row['network']}, batch {row['batch']}, {row['precision']}, K={row['processes']}"
    lines = [f"{title}, cut {row['split']}; best pipeline: {row['best_pipeline']}"]
    for name, values in row["samples_per_second"].items():
        peak = row["peak_memory_bytes"][name]
        memory = f"{peak / 2**20:8.0f} MiB a process" if peak else ""
        lines.append(f"  {name:42} {spread(values)}{memory}")
    for name, values in row["ratios"].items():
        lines.append(f"  {name:42} {values if isinstance(values, str) else spread(values)}")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    return f"{median(values):9.3f}   {min(values):9.3f} .. {max(values):9.3f}"


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Medians as bars, the spread as lines, for every row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [PIPELINE, DDP, THREADS, BACKPROP, ONE, DGL, BOUND]
    names += [
        name for name in (FEW, MANY) if any(name in row["samples_per_second"] for row in rows)
    ]
    colours = dict.fromkeys(names, "#4c78a8") | dict.fromkeys(names[:4], "#f58518")
    colours[BOUND] = "#d9d9d9"
    figure = Figure(figsize=(4.5 * len(rows) + 2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        rates = {name: row["samples_per_second"].get(name, [0.0]) for name in names}
        told = row["samples_per_second"]
        first = next(name for name in (BACKPROP, ONE, DGL) if name in told)
        # A way that this row lacks has one rate, 0.
        over = [[a / b for a, b in zip(one, told[first], strict=False)] for one in rates.values()]
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
    """A way with what it has of stages and processes."""
    layouts = {ONE: (processes, 1), DGL: (processes, processes), FEW: (6, processes), MANY: (6, 6)}
    if name == BOUND:
        return f"DGL, {processes} stages without links"
    if name not in layouts:
        return name
    count, on = layouts[name]
    return f"DGL, {count} stages on {on} process{'es' * (on > 1)}"


if __name__ == "__main__":
    main()
