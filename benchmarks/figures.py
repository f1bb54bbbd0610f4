"""The measured figures of the documents, made from the result files.

    python benchmarks/figures.py            prints the tables
    python benchmarks/figures.py --write    writes them between the marks in the documents

A test compares the documents with this script, so that no figure is copied by hand. Medians, with
the range over the rounds or seeds in brackets.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
UNDERPERFORMS = 0.9
"""Of its own bound: a baseline below gives no ratio."""

COLUMNS = {
    "zen4_all": "",
    "zen4_batch512": "",
    "epyc_batch512": " (AVX2)",
    "epyc_resnet18": " (AVX2)",
    "epyc_resnet18_again": " (AVX2), once more",
}
"""Files, with what tells apart another machine."""
THROUGHPUT = [
    ("the same stages without links", "DGL / without communication"),
    ("the same stages in one process", "DGL / DGL on 1 process"),
    ("what `dglpipe plan pipeline.cost=time` predicts", "DGL / as planned"),
    ("backprop on one thread", "DGL / backprop on 1 thread"),
    ("backprop on two threads", "DGL / backprop, all threads"),
    ("backprop on two replicas", "DGL / backprop, data-parallel"),
    ("the best pipeline of backprop", "DGL / best pipeline"),
    ("the bound of that pipeline: its stages alone, no links", "DGL / bound of the best pipeline"),
]
SUMMARY = {
    "DGL / without communication",
    "DGL / backprop on 1 thread",
    "DGL / backprop, all threads",
    "DGL / backprop, data-parallel",
    "DGL / best pipeline",
}
"""Ratios that the overview shows."""
REACHED = {
    "DGL / backprop, all threads": "backprop, all threads / its bound",
    "DGL / backprop, data-parallel": "backprop, data-parallel / its bound",
    "DGL / best pipeline": "best pipeline / its bound",
}
"""Where it stands what a baseline reaches of its own bound."""
SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved_1f1b": "interleaved 1F1B", "zbv": "ZBV"}


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
    """What stands between the marks of each document."""
    page = "\n".join([*throughput(), "", *others()]) + "\n"
    return {
        README: "\n".join(summary()) + "\n",
        PAGE: page.replace("](benchmarks/", "](../benchmarks/"),
    }


def summary() -> list[str]:
    """Six rows for the overview."""
    rows = load("throughput/zen4_all")["rows"]
    names = [row["precision"] for row in rows]
    head = "two processes of DGL, `cnn6`, batch 128, two cores"
    lines = table_head([head, *names])
    for label, ratio in THROUGHPUT:
        if ratio in SUMMARY:
            cells = (told(row, ratio) for row in rows)
            lines.append(line([f"samples a second over {label}", *cells]))
    tree = load("time_to_accuracy/zen4")
    found = {row["method"]: row for row in tree["rows"]}
    base = median(seconds(found["backprop, 1 thread"]))
    time = spread(one / base for one in seconds(found["DGL"]))
    what = f"digits: time to {100 * tree['accuracy']:.0f} % over backprop on one thread"
    lines.append(
        line(
            [
                what,
                *[
                    "not measured" if one != tree.get("precision", "fp32") else time
                    for one in names
                ],
            ]
        )
    )
    return lines


def load(name: str) -> Any:
    folder, _, file = name.partition("/")
    return json.loads((HERE / folder / "results" / f"{file}.json").read_text())


def throughput() -> list[str]:
    """Two processes of DGL over every other way."""
    columns = [
        (row, other)
        for file, other in COLUMNS.items()
        for row in load(f"throughput/{file}")["rows"]
    ]
    names = [
        f"`{row['network']}`, batch {row['batch']}, {row['precision']}{other}"
        for row, other in columns
    ]
    rows = [row for row, _ in columns]
    lines = table_head(
        ["samples a second of two processes of DGL, over samples a second of", *names]
    )
    for label, ratio in THROUGHPUT:
        lines.append(line([label, *(told(row, ratio) for row in rows)]))
    lines.append(line(["that pipeline", *(pipeline(row["best_pipeline"]) for row in rows)]))
    return lines


def told(row: dict[str, Any], name: str) -> str:
    """A ratio of one row of the throughput benchmark."""
    value = row["ratios"].get(name)
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return f"it underperforms: {median(row['ratios'][REACHED[name]]):.2f} of its bound"
    return spread(value)


def pipeline(name: str) -> str:
    schedule, _, rest = name.partition(", ")
    return f"{SCHEDULES[schedule]}, {rest.replace('=', ' = ')}"


def others() -> list[str]:
    rows = [*segments(), *slept(), *slow_links(), *to_accuracy(), *digits()]
    rows += [*balance(), *paces(), *aged(), *memory()]
    return [*table_head(["what", "figure", "by"]), *(line(row) for row in rows)]


def segments() -> Iterable[list[str]]:
    """Six stages of `cnn6`, on two cores."""
    many, few = "DGL, a process a segment", "DGL, the same on fewer processes"
    best, threads = "best pipeline of backprop", "backprop, all threads"
    pairs = {
        "two processes, over two stages on these": (few, "DGL"),
        "two processes, over the best pipeline of two": (few, best),
        "two processes, over backprop on two threads": (few, threads),
        "six processes, over two threads": (many, threads),
        "six processes, over the same on two": (many, few),
    }
    reached = {best: "best pipeline / its bound", threads: f"{threads} / its bound"}
    rows = load("throughput/zen4_all")["rows"]
    for name, (one, other) in pairs.items():
        cells = []
        for row in rows:
            rates = row["samples_per_second"]
            ratio = spread(a / b for a, b in zip(rates[one], rates[other], strict=True))
            if other in reached and median(row["ratios"][reached[other]]) < UNDERPERFORMS:
                ratio = "no ratio: it underperforms"
            cells.append(f"{row['precision']} {ratio}")
        yield [f"six stages (`cnn6`) on {name}", ", ".join(cells), "benchmarks/throughput"]


def slept() -> Iterable[list[str]]:
    rows = [row for row in load("scaling/epyc_k16")["rows"] if row["way"] == "dgl"]
    depths = [
        ", ".join(
            f"{median(row['efficiency']):.2f}"
            for ms in (5, 10, 50)
            for row in rows
            if (row["ms"], row["depth"]) == (ms, depth)
        )
        for depth in (2, 3)
    ]
    what = "16 processes whose computing is slept, a stage 5, 10, 50 ms: efficiency with "
    what += "two messages under way; with three"
    yield [what, "; ".join(depths), "benchmarks/scaling"]


def slow_links() -> Iterable[list[str]]:
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


def efficiency(row: dict[str, Any]) -> str:
    """Of a baseline that underperforms, what it could reach."""
    return f"at most {row['bound']:.2f}" if row["mark"] else f"{median(row['efficiency']):.2f}"


def to_accuracy() -> Iterable[list[str]]:
    tree = load("time_to_accuracy/zen4")
    rows = {row["method"]: row for row in tree["rows"]}
    base = median(seconds(rows["backprop, 1 thread"]))
    best = tree["best_pipeline"]
    named = {
        "DGL": "two stages of DGL on two processes",
        "DGL, a stage a segment": "six",
        "backprop, all threads": "two threads",
        "backprop, data-parallel": "two replicas",
        "backprop, pipeline": f"{SCHEDULES[best['schedule']]}, m = {best['microbatches']}",
        "sequential": "sequential",
    }
    times = []
    for method, name in named.items():
        reached = rows[method]["of_its_bound"]
        if reached is not None and reached < UNDERPERFORMS:
            times.append(f"{name} no ratio: at {reached:.2f} of its bound")
        else:
            times.append(f"{name} {spread([one / base for one in seconds(rows[method])])}")
    by = "benchmarks/time_to_accuracy"
    share = f"{100 * tree['accuracy']:.0f} %"
    what = f"digits, time to {share} at the last exit over that of backprop on one thread, "
    what += "each with its best rate, 3 seeds"
    yield [what, "; ".join(times), by]
    ends = [
        f"{name} {percent(run['accuracy'] for run in chosen(rows[method]))}"
        for method, name in {"DGL": "DGL", "backprop, 1 thread": "backprop on one thread"}.items()
    ]
    yield ["the same runs, accuracy of the last epoch", "; ".join(ends), by]


def chosen(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a method with its own rate."""
    return [run for run in row["runs"] if run["rate"] == row["rate"]]


def seconds(row: dict[str, Any]) -> list[float]:
    return [float("inf") if run["seconds"] is None else run["seconds"] for run in chosen(row)]


def digits() -> Iterable[list[str]]:
    rows = load("control/quickstart")["rows"]
    by = "`make quickstart`; benchmarks/control"
    yield ["digits, last exit, 3 seeds", percent(row["learnt"] for row in rows), by]
    rows = [row for row in load("control/digits")["rows"] if (row["stages"], row["exit"]) == (3, 2)]
    what = "digits, width 4, K = 3, last exit, 3 seeds: learnt below; frozen at random below"
    kinds = (percent(row[key] for row in rows) for key in ("learnt", "frozen"))
    yield [what, "; ".join(kinds), "benchmarks/control"]


def balance() -> Iterable[list[str]]:
    rows = [row for row in load("balance/epyc")["rows"] if row["stages"] == 4]
    cells = [
        f"{row['network']} {row['slowest_measured']:.2f}" for row in rows if row["cut"] == "time"
    ]
    what = "slowest stage of the cut by time / of the even cut, K = 4"
    yield [what, ", ".join(cells), "benchmarks/balance"]


def paces() -> Iterable[list[str]]:
    kept = {}
    for case in load("async/epyc_paces")["results"]:
        if max(case["slowdown"]) > 1:
            runs = zip(*case["runs"], strict=True)
            kept[case["policy"]] = ", ".join(
                f"{median(stage['share_of_own_pace'] for stage in stages):.2f}" for stages in runs
            )
    what = "4 processes whose computing is slept, asynchronous, one slower by 2: share of its "
    what += "own pace that each stage keeps; with links that block"
    yield [what, f"{kept['overwrite']}; {kept['block']}", "benchmarks/async"]


def aged() -> Iterable[list[str]]:
    runs = load("async/two_cores_accuracy")["runs"]
    cells = [
        f"{name} {percent(run['accuracy'] for run in runs if matches(run))}"
        for name, matches in {
            "synchronous": lambda run: run["kind"] == "synchronous",
            "no stage slowed": lambda run: is_real(run, 1.0),
            "one stage by 1.2": lambda run: is_real(run, 1.2),
            "by 2": lambda run: is_real(run, 2.0),
        }.items()
    ]
    what = "digits, K = 4, asynchronous in processes of their own, M = 50, last exit, 3 seeds "
    what += "for each stage that is slowed"
    yield [what, "; ".join(cells), "benchmarks/async"]


def is_real(run: dict[str, Any], slowdown: float) -> bool:
    return (run["kind"], run["slowdown"], run["buffer"]) == ("real", slowdown, 50)


def memory() -> Iterable[list[str]]:
    for file, network, batch in (("cnn6", "cnn6", 128), ("two_cores_vgg16_bn", "vgg16_bn", 64)):
        rows = load(f"memory/{file}")["rows"]
        cells = [
            f"{row['method']} {max(sum(one.values()) for one in row['peak_bytes']) / 2**20:.0f}"
            for row in rows
            if (row["processes"], row["batch"]) == (2, batch)
        ]
        what = f"fullest of two processes, `{network}`, batch {batch}, MiB at the peak"
        yield [what, ", ".join(cells), "benchmarks/memory"]


def spread(values: Iterable[float]) -> str:
    numbers = sorted(values)
    return f"{median(numbers):.2f} ({numbers[0]:.2f}-{numbers[-1]:.2f})"


def percent(values: Iterable[float]) -> str:
    numbers = [100 * value for value in sorted(values)]
    return f"{median(numbers):.1f} % ({numbers[0]:.1f}-{numbers[-1]:.1f})"


def table_head(names: Sequence[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def line(cells: Sequence[str]) -> str:
    linked = [f"[{one}]({one})" if one.startswith("benchmarks/") else one for one in cells]
    return "|" + "|".join("---" if one == "---" else f" {one} " for one in linked) + "|"


if __name__ == "__main__":
    main()
