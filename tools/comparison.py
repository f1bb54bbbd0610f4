"""Arguments, statistics and result files of a comparison of two checkouts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from checkouts import LABELS, Checkout

HEADER = f"{'median (min-max)':40} {'before':>26} {'after':>26} {'after / before':>26}"


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Parser with the arguments of every comparison; the first line of a docstring describes it."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("before", type=Path, metavar="BEFORE", help="folder of a checkout")
    parser.add_argument("after", type=Path, metavar="AFTER", help="folder of a checkout")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file of the results")
    return parser


def store(output: Path | None, pair: Sequence[Checkout], **results: Any) -> None:
    """Write results with revisions and environment as JSON; the file names no folder."""
    if output is None:
        return
    revisions = {checkout.label: revision(checkout.root) for checkout in pair}
    tree = {"tool": Path(sys.argv[0]).name, "revisions": revisions, "environment": environment()}
    part = output.with_name(f".{output.name}.part")
    part.write_text(json.dumps({**tree, **results}, indent=2) + "\n")
    part.replace(output)


def revision(root: Path) -> str | None:
    """Commit of a checkout, with `-dirty` if a file differs; None without a repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    answer = subprocess.run(command, capture_output=True, check=False, text=True)
    return answer.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions: dict[str, str | None] = {}
    for name in ("torch", "torchvision", "hydra-core"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
    }


def alternate(pair: Sequence[Checkout], rounds: int) -> Iterator[tuple[int, Checkout]]:
    """Yields both checkouts in each round; every second round begins with the second checkout."""
    for number in range(rounds):
        for checkout in pair if number % 2 == 0 else reversed(pair):
            yield number, checkout


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def compare(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Spreads of both checkouts and of the ratio after/before of each round.

    Args:
        values: label -> one value per round.
    """
    before, after = (values[label] for label in LABELS)
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    rounds = {"before": list(before), "after": list(after)}
    return {
        **{label: spread(values[label]) for label in LABELS},
        "after / before": spread(ratios),
        "rounds": rounds,
    }


def show(name: str, comparison: Mapping[str, Any], digits: int = 2) -> str:
    """One line: the name, both medians with their range, and the ratio."""
    columns = [f"{name:40}"]
    for key in (*LABELS, "after / before"):
        places = 3 if key == "after / before" else digits
        low, middle, high = (comparison[key][part] for part in ("min", "median", "max"))
        text = f"{middle:.{places}f} ({low:.{places}f}-{high:.{places}f})"
        columns.append(f"{text:>26}")
    return " ".join(columns)
