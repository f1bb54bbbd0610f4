"""How the chain scales past the cores of a machine, and over slow links, beside its peers.

    python benchmarks/scaling/scaling.py --stages 1 2 4 8 16 --ms 5 10 50 --kib 64

Real processes, real links, the real stream plan; what a stage computes is replaced by sleeping (a
share of it by spinning, so that progress is not free), so that more stages than cores can work at
the same time. Prints the efficiency in the steady state: the time that the slowest stage is given
for a step over the time that a step takes at the last stage. `--gbit` and `--latency` emulate slow
links.

Beside it (`--ways`), on the same ideal: the chain by hand, gloo alone (`bare`); GPipe, 1F1B and
zero-bubble (ZBV) of `torch.distributed.pipelining`, whose modules sleep one part in forward and two
in backward; data-parallel training, whose all-reduce goes on during backward. Each runs at its own
best: the number of micro-batches or of buckets that a short trial finds fastest in that setting.
Beside each figure stands the way's own bound (`bounds.py`); a peer that reaches less than 0.9 of it
is marked. Where more than one bandwidth or latency is given, it says between which of them a way
overtakes another, by what was measured (marked rows left out) and by the bounds; with `--memory`
also at which memory of a device, by results of `benchmarks/memory`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch.multiprocessing as mp
from bounds import bound, bound_without_link
from emulated import PIPELINES, WAYS, Case, run

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "memory")]

import memory
import record

LINKS = ("gbit", "latency_ms")
UNDERPERFORMS = 0.9
MARK = "baseline underperforms"
BASELINES = (*PIPELINES, "ddp")


def main() -> None:
    arguments = parse()
    record.prepare(arguments.output)
    report: dict[str, Any] = {
        "rows": [],
        "left_out": [],
        "crossings": [],
        "crossings_of_bounds": [],
        "crossings_of_memory": crossed_in_memory(arguments.memory),
    }
    for setting in settings(arguments):
        report["left_out"] += tell(refusals(setting))
        choices = [choose(those, arguments.trial_steps) for those in fitting(setting)]
        values: list[list[float]] = [[] for _ in choices]
        for _ in range(arguments.repeats):
            for (case, _tried), reached in zip(choices, values, strict=True):
                reached.append(measure(case))
        for (case, tried), reached in zip(choices, values, strict=True):
            report["rows"].append(row(case, tried, reached))
            tell([told(report["rows"][-1])])
            record.store(arguments.output, **report)
    rows = report["rows"]
    report["crossings"] = tell(crossed(rows, "efficiency"))
    report["crossings_of_bounds"] = crossed(rows, "bound")
    tell([f"by their bounds: {line}" for line in report["crossings_of_bounds"]])
    tell([f"by memory: {line}" for line in report["crossings_of_memory"]])
    record.store(arguments.output, **report)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["dgl"], choices=list(WAYS))
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--ms", nargs="+", type=float, default=[5, 10, 50])
    parser.add_argument("--kib", nargs="+", type=int, default=[64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spin", type=float, default=0.0, help="share that is not slept")
    parser.add_argument("--uneven", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0], help="ms")
    parser.add_argument("--gbit", nargs="+", type=float, default=[0.0], help="0: unlimited")
    many: dict[str, Any] = {"nargs": "+", "type": int}
    parser.add_argument("--microbatches", **many, default=[4, 8, 16], help="tried by pipelines")
    parser.add_argument("--buckets", **many, default=[1, 2, 4], help="tried by `ddp`")
    parser.add_argument("--trial-steps", type=int, default=6, help="of what is tried")
    parser.add_argument("--depth", nargs="+", type=int, default=[2], help="D, of `dgl`")
    parser.add_argument("--gradient-kib", type=int, default=1024, help="of `ddp`")
    parser.add_argument("--memory", nargs="*", default=[], help="results of benchmarks/memory")
    parser.add_argument("--output", help="JSON file of the results")
    return parser.parse_args(words)


def settings(arguments: argparse.Namespace) -> list[list[list[Case]]]:
    """What is measured in turn: by setting, by way, what the way tries."""
    own = (arguments.spin, arguments.uneven, arguments.jitter)
    return [
        [
            [
                Case(way, stages, ms, kib, arguments.steps, *own, latency, gbit, **one)
                for one in tries(way, depth, arguments)
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


def tries(way: str, depth: int, arguments: argparse.Namespace) -> list[dict[str, int]]:
    """What a way may choose for itself."""
    fixed = {"gradient_kib": arguments.gradient_kib, "depth": depth}
    if way in PIPELINES:
        return [{**fixed, "microbatches": m} for m in arguments.microbatches]
    if way == "ddp":
        return [{**fixed, "buckets": count} for count in arguments.buckets]
    return [fixed]


def fitting(setting: Sequence[Sequence[Case]]) -> list[list[Case]]:
    """What the ways take, without the ways that take nothing."""
    taken = [[case for case in those if case.refusal is None] for those in setting]
    return [those for those in taken if those]


def refusals(setting: Sequence[Sequence[Case]]) -> list[str]:
    """Ways that are left out, and why."""
    return [
        f"{those[0].way} is left out at {place(asdict(those[0]))}: {those[0].refusal}"
        for those in setting
        if those[0].stages > 1 and all(case.refusal is not None for case in those)
    ]


def choose(those: Sequence[Case], steps: int) -> tuple[Case, dict[int, float]]:
    """The fastest, and the efficiency of each by what differs; one alone is not run."""
    if len(those) == 1:
        return those[0], {}
    reached = [measure(replace(case, steps=min(steps, case.steps))) for case in those]
    name = searched(those[0].way)
    tried = {getattr(case, name): one for case, one in zip(those, reached, strict=True)}
    return those[reached.index(max(reached))], tried


def searched(way: str) -> str:
    return "microbatches" if way in PIPELINES else "buckets" if way == "ddp" else "depth"


def row(case: Case, tried: dict[int, float], reached: list[float]) -> dict[str, Any]:
    """What is stored of a way in a setting: `searched` is what it chose among `tried`."""
    tree = asdict(case)
    # D is a setting of all, for what is compared; of the others only what the way has.
    for name in {"microbatches", "buckets"} - {searched(case.way)}:
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


def told(row: dict[str, Any]) -> str:
    values = row["efficiency"]
    own = row["bound"], row["bound_without_link"]
    name = searched(row["way"])
    chosen = f", {name} {row[name]}" if row["way"] != "bare" else ""
    limits = f"bound {own[0]:.3f}" + (f" ({own[1]:.3f} without links)" if own[0] < own[1] else "")
    return (
        f"{row['way']:6} {place(row)}{chosen}: "
        f"efficiency {median(values):.3f} ({min(values):.3f} .. {max(values):.3f}), {limits}"
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

    A baseline that does not reach what it could is not compared; its bound is.
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
    """What results of `benchmarks/memory` say of which method needs less memory than another."""
    found = []
    for file in files:
        rows = json.loads(Path(file).read_text())["rows"]
        found += [f"{line} ({file})" for line in memory.crossings(rows)]
    return found


def overtakes(two: dict[str, dict[float, float]]) -> list[tuple[str, str, float, float]]:
    """Who is ahead up to the one, who from the other of two neighbouring points."""
    one, other = two
    found = []
    for a, b in itertools.pairwise(sorted(two[one].keys() & two[other].keys())):
        before, after = (two[one][at] - two[other][at] for at in (a, b))
        if before * after < 0:
            found.append((one, other, a, b) if before > 0 else (other, one, a, b))
    return found


def tell(lines: list[str]) -> list[str]:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return lines


def measure(case: Case) -> float:
    """Efficiency of one run."""
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("fork").Queue()
        mp.start_processes(run, (case, folder, results), case.stages, start_method="fork")
        seconds = results.get()
    return case.ideal / float(seconds)


if __name__ == "__main__":
    main()
