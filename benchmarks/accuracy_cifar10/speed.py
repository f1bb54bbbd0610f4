"""Speed and traffic of the objectives and heads of the accuracy study, at K = 6.

    python benchmarks/accuracy_cifar10/speed.py

Trains every setting of the study `objectives`, and what it is compared with, on synthetic images of
the size of CIFAR-10, on two and on six processes. The settings alternate. For an otherwise idle
machine. `accuracy.py --write` writes the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.accuracy_cifar10.accuracy import precision
from benchmarks.accuracy_cifar10.studies import Setting, settings
from benchmarks.accuracy_cifar10.tables import SPEED, speed_table
from benchmarks.common import log

PROCESSES = (2, 6)
LENGTH = ("data=synthetic", "data.samples=2048", "epochs=4", "evaluate.every=0", "log_every=1000")
"""The first epoch warms up: the last three are measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=SPEED, help="JSON file of the results")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    common.prepare(str(given.output))
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(given.repeats):
        for setting in compared():
            measure(setting, rows.setdefault(setting.name, {"samples_per_second": {}}))
        common.store(str(given.output), rows=rows)
    log(*speed_table(rows))


def compared() -> list[Setting]:
    """Backprop, the heads at K = 6, and every objective."""
    return [
        one
        for one in settings()
        if one.study in ("heads", "objectives")
        or one.name in ("backprop", "mlp_sr K=6", "cnn_sr K=6")
    ]


def measure(setting: Setting, row: dict[str, Any]) -> None:
    """Adds the samples a second of one run on each number of processes to `row`."""
    words = [one for one in setting.words if not one.startswith(("epochs=", "probe."))]
    words += [*LENGTH, "optimizer.lr=0.05", f"precision={precision()}", "pipeline.threads=1"]
    is_backprop = "method=backprop" in words
    for processes in (1,) if is_backprop else PROCESSES:
        found = common.train([*words, f"pipeline.processes={processes}"])
        row["samples_per_second"].setdefault(str(processes), []).append(found.samples_per_second)
        stages = found.summary["per_stage"]
        for name in ("link_bytes_per_sample", "down_bytes_per_sample", "flops_per_sample"):
            row[name] = sum(one[name] for one in stages)


if __name__ == "__main__":
    main()
