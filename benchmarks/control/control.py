"""Whether the stages below an exit have learnt something that helps it.

    python benchmarks/control/control.py --output FILE.json epochs=20 model.width=8

For each exit j > 0: its test accuracy after ordinary training beside that of the same exit
when all stages below it stay at their random start (learning rate 1e-30, which changes no
weight; their batch norm statistics follow the data as in training). Last epoch, every seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

sys.path.append(str(Path(__file__).parents[1]))

import record

FROZEN = "{optimizer:{lr:1.0e-30}}"


def main() -> None:
    arguments = parse()
    record.prepare(arguments.output)
    rows = [
        row
        for stages in arguments.stages
        for seed in arguments.seeds
        for row in compare(arguments.overrides, stages, seed)
    ]
    for line in table(rows):
        sys.stdout.write(line + "\n")
    record.store(arguments.output, rows=rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", help="JSON file of the results")
    parser.add_argument("overrides", nargs="*", help="settings of every run")
    return parser.parse_args()


def compare(overrides: list[str], stages: int, seed: int) -> list[dict[str, object]]:
    """A row for each exit behind stage 0."""
    words = [*overrides, f"pipeline.stages={stages}", f"seed={seed}", "evaluate.every=0"]
    learnt = accuracies(words)
    rows = []
    for j in range(1, stages):
        settings = ",".join([FROZEN] * j + ["{}"] * (stages - j))
        control = accuracies([*words, f"per_stage=[{settings}]"])
        rows.append(
            {"stages": stages, "seed": seed, "exit": j, "learnt": learnt[j], "frozen": control[j]}
        )
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def accuracies(words: list[str]) -> list[float]:
    """Test accuracy of every exit after the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "dglpipe", "train", *words, f"run_dir={run_dir}"]
        subprocess.run(command, check=True, capture_output=True)
        summary = json.loads((run_dir / "summary.json").read_text())
    return list(summary["test"]["accuracy"])


def table(rows: list[dict[str, object]]) -> list[str]:
    """Mean and standard deviation over the seeds."""
    lines = ["stages exit  learnt           frozen below     smallest difference"]
    keys = sorted({(int(str(row["stages"])), int(str(row["exit"]))) for row in rows})
    for stages, j in keys:
        own = [row for row in rows if (row["stages"], row["exit"]) == (stages, j)]
        learnt = [float(str(row["learnt"])) for row in own]
        frozen = [float(str(row["frozen"])) for row in own]
        least = min(a - b for a, b in zip(learnt, frozen, strict=True))
        lines.append(
            f"{stages:6} {j:4}  {mean(learnt):.4f} +- {spread(learnt):.4f} "
            f"{mean(frozen):.4f} +- {spread(frozen):.4f} {least:+.4f}"
        )
    return lines


def spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
