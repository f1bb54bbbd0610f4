"""Scaling of the chain to more stages than cores and over slow links, beside other ways.

    python benchmarks/scaling/scaling.py --stages 1 2 4 8 16 --ms 5 10 50 --kib 64

Processes, links and batch schedule are real; computing is replaced by sleeping (a share of it by
spinning, which needs a core), so that more stages than cores can run at the same time. Prints the
efficiency in the steady state: the time of a step of the slowest stage over the measured time of a
step at the last stage. `--gbit` and `--latency` emulate slow links.

`--ways` adds other ways with the same ideal: the chain with gloo alone (`bare`); GPipe, 1F1B and
zero-bubble (ZBV) of `torch.distributed.pipelining`, whose modules sleep one part in forward and two
in backward; data-parallel training, whose all-reduce overlaps backward. Each uses the number of
micro-batches or buckets that is fastest in a short trial of that setting. Each figure has the bound
of its way beside it (`bounds.py`); a baseline below 0.9 of its bound is marked. With more than one
bandwidth or latency the script prints between which of them a way overtakes another, by the
measurements (without marked rows) and by the bounds; with `--memory` also at which device memory,
by results of `benchmarks/memory`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import MARK, UNDERPERFORMS, log, spread
from benchmarks.memory.crossings import crossings as memory_crossings
from benchmarks.scaling.bounds import bound, bound_without_link
from benchmarks.scaling.case import PIPELINES, Case
from benchmarks.scaling.emulated import WAYS, measure

LINKS = ("gbit", "latency_ms")
BASELINES = (*PIPELINES, "ddp")


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    report: dict[str, Any] = {
        "rows": [],
        "left_out": [],
        "crossings": [],
        "crossings_of_bounds": [],
        "crossings_of_memory": crossed_in_memory(arguments.memory),
    }
    rows = report["rows"]
    for setting in settings(arguments):
        refused = refusals(setting)
        log(*refused)
        report["left_out"] += refused
        for found in measure_setting(setting, arguments.trial_steps, arguments.repeats):
            log(describe(found))
            rows.append(found)
            common.store(arguments.output, **report)
    report["crossings"] = crossed(rows, "efficiency")
    report["crossings_of_bounds"] = crossed(rows, "bound")
    log(*report["crossings"])
    log(*(f"by their bounds: {line}" for line in report["crossings_of_bounds"]))
    log(*(f"by memory: {line}" for line in report["crossings_of_memory"]))
    common.store(arguments.output, **report)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--ways", nargs="+", default=["dgl"], choices=list(WAYS))
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--ms", nargs="+", type=float, default=[5, 10, 50])
    parser.add_argument("--kib", nargs="+", type=int, default=[64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spin", type=float, default=0.0, help="share of computing that spins")
    parser.add_argument("--uneven", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0], help="ms")
    parser.add_argument("--gbit", nargs="+", type=float, default=[0.0], help="0: unlimited")
    many: dict[str, Any] = {"nargs": "+", "type": int}
    parser.add_argument("--microbatches", **many, default=[4, 8, 16], help="choices of pipelines")
    parser.add_argument("--buckets", **many, default=[1, 2, 4], help="choices of `ddp`")
    parser.add_argument("--trial-steps", type=int, default=6, help="of a trial")
    parser.add_argument("--depth", nargs="+", type=int, default=[2], help="D, of `dgl`")
    parser.add_argument("--gradient-kib", type=int, default=1024, help="of `ddp`")
    parser.add_argument("--memory", nargs="*", default=[], help="results of benchmarks/memory")
    return parser.parse_args(words)


def settings(arguments: argparse.Namespace) -> list[list[list[Case]]]:
    """By setting, by way: the cases that the way may choose."""
    own = (arguments.spin, arguments.uneven, arguments.jitter)
    return [
        [
            [
                Case(way, stages, ms, kib, arguments.steps, *own, latency, gbit, **one)
                for one in options(way, depth, arguments)
            ]
            for way in arguments.ways
        ]
        for depth in arguments.depth
        for ms in arguments.ms
        for kib in arguments.kib
        for latency in arguments.latency
        for gbit in arguments.gbit
        for stages in arguments.stages
    ]


def options(way: str, depth: int, arguments: argparse.Namespace) -> list[dict[str, int]]:
    """The choices of a way."""
    fixed = {"gradient_kib": arguments.gradient_kib, "depth": depth}
    if way in PIPELINES:
        return [{**fixed, "microbatches": m} for m in arguments.microbatches]
    if way == "ddp":
        return [{**fixed, "buckets": count} for count in arguments.buckets]
    return [fixed]


def measure_setting(
    setting: Sequence[Sequence[Case]], trial_steps: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for each way that supports the setting."""
    choices = [choose(cases, trial_steps) for cases in supported(setting)]
    ways = {case.way: partial(measure, case) for case, _ in choices}
    reached = common.rounds(ways, repeats, rotate=False)
    return [row(case, tried, reached[case.way]) for case, tried in choices]


def supported(setting: Sequence[Sequence[Case]]) -> list[list[Case]]:
    """The supported cases of each way, without ways that have none."""
    ways = [[case for case in cases if case.refusal is None] for cases in setting]
    return [cases for cases in ways if cases]


def refusals(setting: Sequence[Sequence[Case]]) -> list[str]:
    """The ways that are left out, and why."""
    return [
        f"{cases[0].way} is left out at {place(asdict(cases[0]))}: {cases[0].refusal}"
        for cases in setting
        if cases[0].stages > 1 and all(case.refusal is not None for case in cases)
    ]


def choose(cases: Sequence[Case], steps: int) -> tuple[Case, dict[int, float]]:
    """The fastest case, and the efficiency of each by choice; a single case is not run."""
    if len(cases) == 1:
        return cases[0], {}
    reached = [measure(replace(case, steps=min(steps, case.steps))) for case in cases]
    name = choice_of(cases[0].way)
    tried = {getattr(case, name): one for case, one in zip(cases, reached, strict=True)}
    return cases[reached.index(max(reached))], tried


def choice_of(way: str) -> str:
    """The field of `Case` that a way may choose."""
    return "microbatches" if way in PIPELINES else "buckets" if way == "ddp" else "depth"


def row(case: Case, tried: dict[int, float], reached: list[float]) -> dict[str, Any]:
    """The stored result of a way in a setting, with the trials of its choice."""
    tree = asdict(case)
    # Rows of all ways have D, because rows are compared by it; micro-batches and buckets belong to
    # their ways only.
    for name in {"microbatches", "buckets"} - {choice_of(case.way)}:
        del tree[name]
    own = bound(case)
    fails = case.way in BASELINES and median(reached) < UNDERPERFORMS * own
    return {
        **tree,
        "tried": tried,
        "efficiency": reached,
        "bound": own,
        "bound_without_link": bound_without_link(case),
        "mark": MARK if fails else None,
    }


def describe(row: dict[str, Any]) -> str:
    own, unlinked = row["bound"], row["bound_without_link"]
    name = choice_of(row["way"])
    chosen = f", {name} {row[name]}" if row["way"] != "bare" else ""
    limits = f"bound {own:.3f}" + (f" ({unlinked:.3f} without links)" if own < unlinked else "")
    return (
        f"{row['way']:6} {place(row)}{chosen}: efficiency {spread(row['efficiency'], 3)}, {limits}"
        + (f": {row['mark']}" if row["mark"] else "")
    )


def place(row: dict[str, Any]) -> str:
    """The setting in words."""
    link = f"{row['latency_ms']:g} ms, {row['gbit'] or 'any'} Gbit/s"
    return f"K={row['stages']:<3} {row['ms']:g} ms a stage, {row['kib']} KiB, {link}"


def crossed(rows: Sequence[dict[str, Any]], value: str) -> list[str]:
    return [line for parameter in LINKS for line in crossings(rows, parameter, value)]


def crossings(
    rows: Sequence[dict[str, Any]], parameter: str, value: str = "efficiency"
) -> list[str]:
    """Between which values of `parameter` one way overtakes another.

    The efficiency of a marked baseline is not compared; its bound is.
    """
    names = [one.name for one in fields(Case) if one.name not in ("way", "steps", parameter)]
    names = [name for name in names if name not in ("microbatches", "buckets")]
    groups: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if value == "efficiency" and row.get("mark"):
            continue
        setting = ", ".join(f"{name} {row[name]:g}" for name in names if row.get(name))
        # No limit is the fastest of all bandwidths.
        at = row[parameter] or (float("inf") if parameter == "gbit" else 0.0)
        values = groups.setdefault(setting, {}).setdefault(row["way"], {})
        values[at] = median(row["efficiency"]) if value == "efficiency" else row[value]
    return [
        f"{low} is ahead up to {parameter} {a:g}, {high} from {b:g} on ({setting})"
        for setting, ways in groups.items()
        for one, other in itertools.combinations(ways, 2)
        for low, high, a, b in overtakes({one: ways[one], other: ways[other]})
    ]


def crossed_in_memory(files: Sequence[str]) -> list[str]:
    """The crossings in results of `benchmarks/memory`."""
    found = []
    for file in files:
        rows = json.loads(Path(file).read_text())["rows"]
        found += [f"{line} ({file})" for line in memory_crossings(rows)]
    return found


def overtakes(two: dict[str, dict[float, float]]) -> list[tuple[str, str, float, float]]:
    """Way ahead before, way ahead after, and the two neighbouring points, for each change."""
    one, other = two
    found = []
    for a, b in itertools.pairwise(sorted(two[one].keys() & two[other].keys())):
        before, after = (two[one][at] - two[other][at] for at in (a, b))
        if before * after < 0:
            found.append((one, other, a, b) if before > 0 else (other, one, a, b))
    return found


if __name__ == "__main__":
    main()
