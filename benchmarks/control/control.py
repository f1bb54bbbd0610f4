"""Control: whether what the stages below an exit learn improves the exit.

    python benchmarks/control/control.py --output FILE.json epochs=20 model.width=8

For each exit j > 0: its test accuracy after training, and the accuracy of the same exit when all
stages below it keep their random weights (learning rate 1e-30, which changes no weight; their
batch norm statistics follow the data as in training). Last epoch, every seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log, train

FROZEN = "{optimizer:{lr:1.0e-30}}"


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    rows = [
        row
        for stages in arguments.stages
        for seed in arguments.seeds
        for row in compare(arguments.overrides, stages, seed)
    ]
    log(*table(rows))
    common.store(arguments.output, rows=rows)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="settings of every run")
    return parser.parse_args(words)


def compare(overrides: list[str], stages: int, seed: int) -> list[dict[str, Any]]:
    """A row for each exit above stage 0."""
    words = [*overrides, f"pipeline.stages={stages}", f"seed={seed}", "evaluate.every=0"]
    learnt = train(words).accuracy
    rows = []
    for j in range(1, stages):
        settings = ",".join([FROZEN] * j + ["{}"] * (stages - j))
        control = train([*words, f"per_stage=[{settings}]"]).accuracy
        rows.append(
            {"stages": stages, "seed": seed, "exit": j, "learnt": learnt[j], "frozen": control[j]}
        )
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over the seeds."""
    lines = ["stages exit  learnt           frozen below     smallest difference"]
    keys = sorted({(row["stages"], row["exit"]) for row in rows})
    for stages, j in keys:
        own = [row for row in rows if (row["stages"], row["exit"]) == (stages, j)]
        learnt = [row["learnt"] for row in own]
        frozen = [row["frozen"] for row in own]
        least = min(a - b for a, b in zip(learnt, frozen, strict=True))
        lines.append(
            f"{stages:6} {j:4}  {mean(learnt):.4f} +- {deviation(learnt):.4f} "
            f"{mean(frozen):.4f} +- {deviation(frozen):.4f} {least:+.4f}"
        )
    return lines


def deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
