"""How the chain scales past the cores of a machine, and over slow links, beside its peers.

    python benchmarks/scaling/scaling.py --stages 1 2 4 8 16 --ms 5 10 50 --kib 64

Real processes, real links, the real stream plan; what a stage computes is replaced by sleeping (a
share of it by spinning, so that progress is not free), so that more stages than cores can work at
the same time. Prints the efficiency in the steady state: the time that the slowest stage is given
for a step over the time that a step takes at the last stage. `--gbit` and `--latency` emulate slow
links.

Beside it (`--ways`), on the same ideal: the chain by hand, gloo alone (`bare`); GPipe, 1F1B and
zero-bubble (ZBV) of `torch.distributed.pipelining`, whose modules sleep one part in forward and two
in backward; data-parallel training, whose all-reduce goes on during backward. Where more than one
bandwidth or latency is given, it says between which of them a way overtakes another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as mp
from emulated import WAYS, Case, run

LINKS = ("gbit", "latency_ms")


def main() -> None:
    arguments = parse()
    rows = []
    for alternatives in cases(arguments):
        values: dict[str, list[float]] = {case.way: [] for case in alternatives}
        for _ in range(arguments.repeats):
            for case in alternatives:
                values[case.way].append(measure(case))
        for case in alternatives:
            rows.append({**asdict(case), "efficiency": values[case.way]})
            sys.stdout.write(told(rows[-1]) + "\n")
        sys.stdout.flush()
    lines = [line for parameter in LINKS for line in crossings(rows, parameter)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        tree = {
            "command": " ".join(["python", *sys.argv]),
            "environment": environment(),
            "rows": rows,
            "crossings": lines,
        }
        Path(arguments.output).write_text(json.dumps(tree, indent=2) + "\n")


def parse() -> argparse.Namespace:
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
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--depth", nargs="+", type=int, default=[2], help="D, of `dgl`")
    parser.add_argument("--gradient-kib", type=int, default=1024, help="of `ddp`")
    parser.add_argument("--output", help="JSON file of the results")
    return parser.parse_args()


def cases(arguments: argparse.Namespace) -> list[list[Case]]:
    """What is measured in turn, all ways of a setting together."""
    own = (arguments.spin, arguments.uneven, arguments.jitter)
    peers = (arguments.microbatches, arguments.gradient_kib)
    return [
        [
            Case(way, stages, ms, kib, arguments.steps, *own, latency, gbit, *peers, depth)
            for way in arguments.ways
            if stages > 1 or way == "dgl"
        ]
        for depth in arguments.depth
        for ms in arguments.ms
        for kib in arguments.kib
        for latency in arguments.latency
        for gbit in arguments.gbit
        for stages in arguments.stages
    ]


def told(row: dict[str, Any]) -> str:
    values = row["efficiency"]
    link = f"{row['latency_ms']:g} ms, {row['gbit'] or 'any'} Gbit/s, D={row['depth']}"
    return (
        f"{row['way']:6} K={row['stages']:<3} {row['ms']:g} ms a stage, {row['kib']} KiB, {link}: "
        f"efficiency {median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"
    )


def crossings(rows: Sequence[dict[str, Any]], parameter: str) -> list[str]:
    """Between which values of `parameter` one way overtakes another."""
    ignored = ("way", "efficiency", parameter)
    groups: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        setting = ", ".join(f"{k} {v:g}" for k, v in row.items() if k not in ignored and v)
        # No limit is the fastest of all bandwidths.
        at = row[parameter] or (float("inf") if parameter == "gbit" else 0.0)
        values = groups.setdefault(setting, {}).setdefault(row["way"], {})
        values[at] = median(row["efficiency"])
    lines = []
    for setting, ways in groups.items():
        for one, other in itertools.combinations(ways, 2):
            points = sorted(ways[one].keys() & ways[other].keys())
            for a, b in itertools.pairwise(points):
                before, after = (ways[one][at] - ways[other][at] for at in (a, b))
                if before * after < 0:
                    low, high = (one, other) if before > 0 else (other, one)
                    lines.append(
                        f"{low} is ahead up to {parameter} {a:g}, {high} from {b:g} on ({setting})"
                    )
    return lines


def measure(case: Case) -> float:
    """Efficiency of one run."""
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("fork").Queue()
        mp.start_processes(run, (case, folder, results), case.stages, start_method="fork")
        seconds = results.get()
    slowest = max(case.seconds(stage) for stage in range(case.stages))
    return slowest / float(seconds)


def environment() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
