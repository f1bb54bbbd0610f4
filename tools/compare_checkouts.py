"""Compare the final weights of the same 14 runs in two checkouts, bit for bit.

    python tools/compare_checkouts.py BEFORE AFTER
    python tools/compare_checkouts.py BEFORE AFTER --only k3 vit --output FILE.json

Both checkouts train each run at the same time, with one thread per process, on the CPU. A row has
the name of the run and `equal`, or the stages whose `weights_sha256` differ. The exit status is 1
if a stage differs or a run fails, and 2 if a checkout cannot be used.

An epoch of the digits has 1437 images: the last batch of 100 rows is uneven (37 rows) in all runs
without max_steps.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkouts import Checkout, CheckoutError, open_checkouts
from comparison import parser_of, store

COMMON = ["pipeline.threads=1", "pipeline.backend=gloo"]
BATCH_SIZE = 100
DIGITS = ["data=digits", "model=cnn6", "model.width=8", "epochs=2", f"batch_size={BATCH_SIZE}"]
VIT = ["model=torchvision", "model.name=vit_b_16", "optimizer.lr=0.01", "max_steps=2"]
K3 = [*DIGITS, "pipeline.stages=3"]
RUNS = {
    "k2": [*DIGITS, "pipeline.stages=2"],
    "k3": K3,
    "k6": [*DIGITS, "pipeline.stages=6"],
    "k3_p1": [*K3, "pipeline.processes=1"],
    "k3_p2": [*K3, "pipeline.processes=2"],
    "bf16": [*K3, "precision=bf16"],
    "dropout": [*K3, "model.dropout=0.2"],
    "sequential": [*K3, "method=sequential"],
    "async_simulated": [*K3, "method=dgl_async", "method.simulate=true", "method.buffer=5"],
    "backprop": [*DIGITS, "method=backprop"],
    "1f1b": [
        *(*DIGITS, "method=backprop", "pipeline.stages=2"),
        *("method.schedule=1f1b", "method.microbatches=2"),
    ],
    "replicas": [*DIGITS, "pipeline.stages=2", "pipeline.replicas=2"],
    "resnet18": [
        *("model=resnet18", "data=digits", "data.image_size=32", "pipeline.stages=3"),
        *(f"batch_size={BATCH_SIZE}", "max_steps=5"),
    ],
    "vit": [
        *(*VIT, "pipeline.stages=3", "pipeline.processes=1", "batch_size=2"),
        *("data=synthetic", "data.image_size=224", "data.samples=8"),
    ],
}
"""Overrides of each run. The last evaluation of `vit` reads a quarter of `data.samples` images;
the 360 test images of the digits would take minutes."""


@dataclass(frozen=True)
class Row:
    """Comparison of one run.

    Attributes:
        differ: stages whose weights differ, or that only one checkout has.
        weights: label -> `weights_sha256` of every stage.
        error: reason why a checkout has no weights.
    """

    name: str
    overrides: list[str]
    differ: list[int]
    weights: dict[str, list[str]]
    error: str | None = None

    @property
    def is_equal(self) -> bool:
        return not self.differ and self.error is None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.name:16} failed\n{self.error}"
        stages = ", ".join(map(str, self.differ))
        return f"{self.name:16} {f'differs: stages {stages}' if stages else 'equal'}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    arguments = parser.parse_args()
    rows = []
    with open_checkouts(arguments) as pair:
        for name in arguments.only:
            rows.append(compare_run(name, pair))
            print(rows[-1], flush=True)
        store(arguments.output, pair, rows=[asdict(row) for row in rows])
    equal = sum(row.is_equal for row in rows)
    print(f"{equal} of {len(rows)} runs equal")
    sys.exit(0 if equal == len(rows) else 1)


def compare_run(name: str, pair: Sequence[Checkout]) -> Row:
    """Train one run with both checkouts at the same time."""
    overrides = [*RUNS[name], *COMMON]
    with tempfile.TemporaryDirectory(prefix="compare_") as scratch, ExitStack() as running:
        trainings = [
            running.enter_context(checkout.training(overrides, Path(scratch) / checkout.label))
            for checkout in pair
        ]
        try:
            before, after = (weights_by_stage(training.summary()) for training in trainings)
        except (CheckoutError, ValueError) as error:
            return Row(name, overrides, [], {}, str(error))
    weights = {"before": list(before.values()), "after": list(after.values())}
    return Row(name, overrides, differing_stages(before, after), weights)


def weights_by_stage(summary: Mapping[str, Any]) -> dict[int, str]:
    """`weights_sha256` of every stage of a summary.

    Raises:
        ValueError: the run has not finished, or has no stages.
    """
    if summary["status"] != "finished" or not summary["per_stage"]:
        raise ValueError(f"summary.json: {summary['status']}, {len(summary['per_stage'])} stages")
    return {stage["stage"]: stage["weights_sha256"] for stage in summary["per_stage"]}


def differing_stages(before: Mapping[int, str], after: Mapping[int, str]) -> list[int]:
    """Stages whose weights differ, and stages that only one checkout has."""
    stages = sorted(before.keys() | after.keys())
    return [stage for stage in stages if before.get(stage) != after.get(stage)]


if __name__ == "__main__":
    main()
