"""The paper's ImageNet experiments at 64 pixels on synthetic images: 100 steps, loss and memory.

    python benchmarks/accuracy_cifar10/imagenet_steps.py --output FILE.json

The recipes run in real processes with the paper's number of stages. The table has the local losses,
and the memory that `dglpipe plan` predicts beside the memory that `benchmarks/memory` records in
two further steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.accuracy_cifar10.tables import STEPS, steps_table
from benchmarks.common import log
from benchmarks.memory.memory import measure
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose

RATES = {"imagenet_vgg13": 0.0125, "imagenet_resnet152": 0.002}
"""The paper's 0.1 divided by 8, as the batch is. At that rate the loss of a residual network jumps,
also that of ResNet-50 with backprop."""
WORDS = (
    *("data=synthetic", "~data.transform", "data.samples=640", "data.classes=10"),
    *("data.image_size=64", "batch_size=32", "precision=fp32", "pipeline.threads=1"),
    *("evaluate.every=0", "log_every=10"),
)
"""Every image is seen five times."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=STEPS, help="JSON file of the results")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(RATES), default=list(RATES))
    given = parser.parse_args()
    common.prepare(str(given.output))
    rows = json.loads(given.output.read_text())["rows"] if given.output.exists() else []
    for name in given.only:
        words = [f"experiment={name}", *WORDS, f"optimizer.lr={RATES[name]}"]
        found = row(name, words, given.steps)
        log(*steps_table([found]))
        rows = [*(one for one in rows if one["experiment"] != name), found]
        common.store(str(given.output), rows=rows)


def row(name: str, words: list[str], steps: int) -> dict[str, Any]:
    """Losses of the first and the last ten steps, planned and measured bytes, by stage."""
    words = [*words, f"max_steps={steps}"]
    found = common.train(words)
    losses: dict[int, list[float]] = {}
    for line in found.metrics:
        if line["kind"] == "train":
            losses.setdefault(line["stage"], []).append(line["loss"])
    peaks = measure(compose(parse_arguments([*words, "max_steps=2"])))
    return {
        "experiment": name,
        "steps": steps,
        "first_loss": [losses[j][0] for j in sorted(losses)],
        "last_loss": [losses[j][-1] for j in sorted(losses)],
        "planned_bytes": planned(words),
        "measured_bytes": [sum(peak.values()) for peak in peaks],
    }


def planned(words: list[str]) -> list[int]:
    """Bytes of every stage that `dglpipe plan` predicts."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        common.dglpipe_command("plan", *words, f"output={output}")
        return [stage["memory_bytes"] for stage in json.loads(output.read_text())["per_stage"]]


if __name__ == "__main__":
    main()
