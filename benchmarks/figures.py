"""The measured figures of the documents, from the result files.

    python benchmarks/figures.py            prints the tables
    python benchmarks/figures.py --write    writes them between the marks in the documents

A test compares the documents with this script, so no figure is copied by hand. Figures are medians,
with the range over the rounds or seeds in brackets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import HERE, load, ratios, reaches_bound, spread
from benchmarks.memory.crossings import fullest
from benchmarks.time_to_accuracy.outcomes import chosen, seconds, underperforms

README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
FILES = {"zen4_all": "", "zen4_batch512": "", "epyc_batch512": "AVX2", "epyc_resnet18": "AVX2"}
"""Result files of the throughput, with the machine where it is not the first one."""
RATIOS = {
    "the same stages without links": "DGL / without communication",
    "the same stages in one process": "DGL / DGL on 1 process",
    "what `dglpipe plan pipeline.cost=time` predicts": "DGL / as planned",
    "backprop on one thread": "DGL / backprop on 1 thread",
    "backprop on two threads": "DGL / backprop, all threads",
    "backprop on two replicas": "DGL / backprop, data-parallel",
    "the best pipeline of backprop": "DGL / best pipeline",
    "the bound of that pipeline: its stages alone, no links": "DGL / bound of the best pipeline",
}
OVERVIEW = (
    "the same stages without links",
    "backprop on one thread",
    "backprop on two threads",
    "backprop on two replicas",
    "the best pipeline of backprop",
)
"""The ratios of README.md."""
BOUNDS = {
    "DGL / backprop, all threads": "backprop, all threads / its bound",
    "DGL / backprop, data-parallel": "backprop, data-parallel / its bound",
    "DGL / best pipeline": "best pipeline / its bound",
}
"""Where a result file has the share of its bound that a baseline reaches."""
SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved_1f1b": "interleaved 1F1B", "zbv": "ZBV"}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into the documents")
    write = parser.parse_args().write
    for document, table in documents().items():
        if not write:
            sys.stdout.write(f"{document.name}\n{table}\n")
            continue
        before, begin, rest = document.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            parser.error(f"{document.name} lacks {BEGIN.strip()} or {END.strip()}")
        document.write_text(before + BEGIN + table + END + after)


def documents() -> dict[Path, str]:
    """The text between the marks of each document."""
    page = "\n".join([*throughput(), "", *other_figures()]) + "\n"
    return {
        README: "\n".join(overview()) + "\n",
        PAGE: page.replace("](benchmarks/", "](../benchmarks/"),
    }


def overview() -> list[str]:
    """At most six rows for README.md."""
    rows = load("throughput/zen4_all")["rows"]
    precisions = [row["precision"] for row in rows]
    lines = table_head(["two processes of DGL, `cnn6`, batch 128, two cores", *precisions])
    for way in OVERVIEW:
        cells = (ratio(row, RATIOS[way]) for row in rows)
        lines.append(line([f"samples a second over {way}", *cells]))
    tree = load("time_to_accuracy/zen4")
    methods = {row["method"]: row for row in tree["rows"]}
    base = median(seconds(methods["backprop, 1 thread"]))
    time = spread(one / base for one in seconds(methods["DGL"]))
    measured = tree.get("precision", "fp32")
    what = f"digits: time to {100 * tree['accuracy']:.0f} % over backprop on one thread"
    lines.append(line([what, *(time if one == measured else "not measured" for one in precisions)]))
    return lines


def throughput() -> list[str]:
    """Two processes of DGL over every other way; a column for each row of the result files."""
    columns: dict[str, Row] = {}
    for file, machine in FILES.items():
        for row in load(f"throughput/{file}")["rows"]:
            name = f"`{row['network']}`, batch {row['batch']}, {row['precision']}"
            name += f" ({machine})" if machine else ""
            columns[f"{name}, once more" if name in columns else name] = row
    head = "samples a second of two processes of DGL, over samples a second of"
    lines = table_head([head, *columns])
    for way, name in RATIOS.items():
        lines.append(line([way, *(ratio(row, name) for row in columns.values())]))
    pipelines = (pipeline_name(row["best_pipeline"]) for row in columns.values())
    return [*lines, line(["that pipeline", *pipelines])]


def ratio(row: Row, name: str) -> str:
    """A ratio of one row of the throughput benchmark, or why there is none."""
    value = row["ratios"].get(name)
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return f"it underperforms: {median(row['ratios'][BOUNDS[name]]):.2f} of its bound"
    return spread(value)


def pipeline_name(name: str) -> str:
    schedule, _, rest = name.partition(", ")
    return f"{SCHEDULES[schedule]}, {rest.replace('=', ' = ')}"


def other_figures() -> list[str]:
    rows = [*segments(), *slept(), *slow_links(), *time_to_accuracy(), *control(), *balance()]
    rows += [*update_rates(), *asynchronous_accuracy(), *memory(), *faults()]
    return [*table_head(["what", "figure", "by"]), *map(line, rows)]


def segments() -> Iterator[list[str]]:
    """Six stages of `cnn6` on two cores."""
    many, few = "DGL, a process a segment", "DGL, the same on fewer processes"
    best, threads = "best pipeline of backprop", "backprop, all threads"
    pairs = {
        "two processes, over two stages on these": (few, "DGL"),
        "two processes, over the best pipeline of two": (few, best),
        "two processes, over backprop on two threads": (few, threads),
        "six processes, over two threads": (many, threads),
        "six processes, over the same on two": (many, few),
    }
    bounds = {best: "best pipeline / its bound", threads: f"{threads} / its bound"}
    for name, (one, other) in pairs.items():
        cells = []
        for row in load("throughput/zen4_all")["rows"]:
            rates = row["samples_per_second"]
            figure = spread(ratios(rates[one], rates[other]))
            if other in bounds and not reaches_bound(row["ratios"][bounds[other]]):
                figure = "no ratio: it underperforms"
            cells.append(f"{row['precision']} {figure}")
        yield [f"six stages (`cnn6`) on {name}", ", ".join(cells), "benchmarks/throughput"]


def slept() -> Iterator[list[str]]:
    """Sixteen processes on two cores."""
    rows = [row for row in load("scaling/epyc_k16")["rows"] if row["way"] == "dgl"]
    found = {(row["depth"], row["ms"]): f"{median(row['efficiency']):.2f}" for row in rows}
    figures = "; ".join(", ".join(found[depth, ms] for ms in (5, 10, 50)) for depth in (2, 3))
    what = "16 processes whose computing is slept, a stage 5, 10, 50 ms: efficiency with "
    what += "two messages under way; with three"
    yield [what, figures, "benchmarks/scaling"]


def slow_links() -> Iterator[list[str]]:
    ways = {"dgl": "DGL", "gpipe": "GPipe", "1f1b": "1F1B", "zbv": "ZBV", "ddp": "data-parallel"}
    four = "4 processes of 200 ms, 1 MiB a message, 4 MiB of gradients"
    cases = [
        ("epyc_gbit_k4", "gbit", 0.1, f"{four}, links of 0.1 Gbit/s"),
        ("epyc_latency_k4", "latency_ms", 50.0, f"{four}, 50 ms of latency, any bandwidth"),
        ("epyc_latency_8", "latency_ms", 20.0, "8 processes of 50 ms, 20 ms of latency"),
    ]
    for file, key, value, what in cases:
        rows = {row["way"]: row for row in load(f"scaling/{file}")["rows"] if row[key] == value}
        figures = [f"{name} {efficiency(rows[way])}" for way, name in ways.items() if way in rows]
        yield [f"{what}, computing slept: efficiency", ", ".join(figures), "benchmarks/scaling"]


def efficiency(row: Row) -> str:
    """For a marked baseline: its bound."""
    return f"at most {row['bound']:.2f}" if row["mark"] else f"{median(row['efficiency']):.2f}"


def time_to_accuracy() -> Iterator[list[str]]:
    tree = load("time_to_accuracy/zen4")
    rows = {row["method"]: row for row in tree["rows"]}
    base = median(seconds(rows["backprop, 1 thread"]))
    best = tree["best_pipeline"]
    methods = {
        "DGL": "two stages of DGL on two processes",
        "DGL, a stage a segment": "six",
        "backprop, all threads": "two threads",
        "backprop, data-parallel": "two replicas",
        "backprop, pipeline": f"{SCHEDULES[best['schedule']]}, m = {best['microbatches']}",
        "sequential": "sequential",
    }
    times = []
    for method, name in methods.items():
        row = rows[method]
        if underperforms(row):
            times.append(f"{name} no ratio: at {row['of_its_bound']:.2f} of its bound")
        else:
            times.append(f"{name} {spread(one / base for one in seconds(row))}")
    by = "benchmarks/time_to_accuracy"
    what = f"digits, time to {100 * tree['accuracy']:.0f} % at the last exit over that of "
    what += "backprop on one thread, each with its best rate, 3 seeds"
    yield [what, "; ".join(times), by]
    ends = [
        f"{name} {percent(run['accuracy'] for run in chosen(rows[method]))}"
        for method, name in {"DGL": "DGL", "backprop, 1 thread": "backprop on one thread"}.items()
    ]
    yield ["the same runs, accuracy of the last epoch", "; ".join(ends), by]


def control() -> Iterator[list[str]]:
    rows = load("control/quickstart")["rows"]
    by = "`make quickstart`; benchmarks/control"
    yield ["digits, last exit, 3 seeds", percent(row["learnt"] for row in rows), by]
    rows = [row for row in load("control/digits")["rows"] if (row["stages"], row["exit"]) == (3, 2)]
    figures = (percent(row[kind] for row in rows) for kind in ("learnt", "frozen"))
    what = "digits, width 4, K = 3, last exit, 3 seeds: learnt below; frozen at random below"
    yield [what, "; ".join(figures), "benchmarks/control"]


def balance() -> Iterator[list[str]]:
    rows = [row for row in load("balance/epyc")["rows"] if row["stages"] == 4]
    figures = [
        f"{row['network']} {row['slowest_measured']:.2f}" for row in rows if row["cut"] == "time"
    ]
    what = "slowest stage of the cut by time / of the even cut, K = 4"
    yield [what, ", ".join(figures), "benchmarks/balance"]


def update_rates() -> Iterator[list[str]]:
    """Asynchronous stages, one of them slower."""
    figures = {}
    for case in load("scaling/epyc_asynchronous")["results"]:
        if max(case["slowdown"]) > 1:
            by_stage = zip(*case["runs"], strict=True)
            shares = (median(one["share_of_own_pace"] for one in runs) for runs in by_stage)
            figures[case["policy"]] = ", ".join(f"{share:.2f}" for share in shares)
    what = "4 processes whose computing is slept, asynchronous, one slower by 2: updates a second "
    what += "of each stage over its updates alone; with links that block"
    yield [what, f"{figures['overwrite']}; {figures['block']}", "benchmarks/scaling"]


def asynchronous_accuracy() -> Iterator[list[str]]:
    runs = load("async/two_cores_accuracy")["runs"]
    synchronous = percent(run["accuracy"] for run in runs if run["kind"] == "synchronous")
    figures = [f"synchronous {synchronous}"]
    for slowdown, name in {1.0: "no stage slowed", 1.2: "one stage by 1.2", 2.0: "by 2"}.items():
        own = (
            run["accuracy"]
            for run in runs
            if (run["kind"], run["slowdown"], run["buffer"]) == ("real", slowdown, 50)
        )
        figures.append(f"{name} {percent(own)}")
    what = "digits, K = 4, asynchronous in processes of their own, M = 50, last exit, 3 seeds "
    what += "for each stage that is slowed"
    yield [what, "; ".join(figures), "benchmarks/async"]


def memory() -> Iterator[list[str]]:
    for file, network, batch in (("cnn6", "cnn6", 128), ("two_cores_vgg16_bn", "vgg16_bn", 64)):
        rows = load(f"memory/{file}")["rows"]
        figures = [
            f"{row['method']} {fullest(row):.0f}"
            for row in rows
            if (row["processes"], row["batch"]) == (2, batch)
        ]
        what = f"fullest of two processes, `{network}`, batch {batch}, MiB at the peak"
        yield [what, ", ".join(figures), "benchmarks/memory"]


def faults() -> Iterator[list[str]]:
    """Kills, damaged files, wrong overrides, checkpoints, and one stage that starts again alone."""
    by = "[benchmarks/faults](benchmarks/faults)"
    kills = load("faults/kills")["counts"]
    what = "runs that finish after a random kill, with equal weights and lines of metrics"
    yield [what, f"{kills['right']} of {kills['kills']}", by]
    outcomes = load("faults/damage")["outcomes"]
    older = outcomes["checkpoint: older checkpoint"]
    silent = sum(count for name, count in outcomes.items() if "silent" in name)
    what = "damaged files: results that are wrong in silence; runs that used an older checkpoint"
    yield [what, f"{silent}, {older} of {sum(outcomes.values())}", by]
    counts = load("faults/overrides")["counts"]
    bad = counts.get("traceback", 0), counts.get("over time", 0)
    what = "wrong overrides: tracebacks, hangs"
    yield [what, f"{bad[0]}, {bad[1]} of {sum(counts.values())}", by]
    cost = load("faults/checkpoint_cost")
    figures = [f"{name} {spread(cost[name]['ratios'], 3)}" for name in ("cnn6", "digits")]
    what = f"throughput with a checkpoint in {cost['every']} steps, over throughput without"
    yield [what, ", ".join(figures), by]
    yield from stage_restart(by)


def stage_restart(by: str) -> Iterator[list[str]]:
    """One of four asynchronous stages is killed and starts again."""
    tree = load("faults/stage_restart")
    outages = tree["outages"]
    gone = spread((one["seconds"] for one in outages), 1)
    made = spread((count for one in outages for count in one["updates"].values()), 0)
    what = "one of four asynchronous stages killed: seconds until it goes on; updates of each other"
    yield [what, f"{gone}; {made}", by]
    plain = percent(one["accuracy"][-1] for one in tree["undisturbed"])
    killed = percent(one["accuracy"][-1] for one in outages)
    yield ["last exit, no stage killed; one of four killed", f"{plain}; {killed}", by]


def percent(values: Iterable[float]) -> str:
    """Median with minimum and maximum, in percent."""
    numbers = [100 * value for value in sorted(values)]
    return f"{median(numbers):.1f} % ({numbers[0]:.1f}-{numbers[-1]:.1f})"


def table_head(names: Sequence[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    """A row of a table; a folder of the benchmarks becomes a link."""
    linked = [f"[{one}]({one})" if one.startswith("benchmarks/") else one for one in cells]
    return "|" + "|".join("---" if one == "---" else f" {one} " for one in linked) + "|"


if __name__ == "__main__":
    main()
