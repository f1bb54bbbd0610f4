"""What checkpoints cost: the steps after a checkpoint beside the steps before the next one.

    python benchmarks/faults/checkpoint_cost.py --output benchmarks/faults/results/NAME.json

One run writes a checkpoint in 50 steps and a training line in every step. A checkpoint is copied
and written in the first steps after it, so the second half of the 50 steps has no cost. The halves
are compared checkpoint by checkpoint, so that a drift of the machine cancels. Run on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log, spread

EVERY, HALF = 50, 25
"""Steps between two checkpoints, and steps that are compared."""
STAGES = 2
NETWORKS = {
    "cnn6": [
        *("model=cnn6", "model.width=64", "data=synthetic", "data.image_size=32"),
        "batch_size=128",
    ],
    "digits": ["data=digits"],
}
LIMITS = {"cnn6": 0.01}
"""Largest share of the throughput that checkpoints may cost; digits has no limit."""


def measure(network: str, checkpoints: int) -> list[float]:
    """Throughput with checkpoints over throughput without, for each checkpoint."""
    # Each checkpoint is followed by 50 steps; the first steps of a run are slow.
    steps = (checkpoints + 1) * EVERY
    data = ["epochs=1000"] if network == "digits" else [f"data.samples={128 * steps}"]
    words = [*NETWORKS[network], *data, f"max_steps={steps}", "evaluate.every=0"]
    more = [f"pipeline.stages={STAGES}", "pipeline.threads=1", "log_every=1"]
    run = common.train([*words, *more, f"checkpoint.every={EVERY}"])
    return ratios(run.metrics)


def ratios(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Twice the time of the second half of 50 steps, over the time of both halves, for each
    checkpoint. The last stage counts: its rate is the throughput of the chain."""
    rates = {
        line["step"]: line["samples_per_second"]
        for line in lines
        if line["kind"] == "train" and line["stage"] == STAGES - 1
    }
    found = []
    for saved in range(EVERY, max(rates) - EVERY + 1, EVERY):
        # The time of a step, without the number of rows, which is the same in all of them.
        after, later = (
            sum(1 / rates[step] for step in range(first, first + HALF))
            for first in (saved + 1, saved + 1 + HALF)
        )
        found.append(2 * later / (after + later))
    return found


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    results = {}
    for network in arguments.networks:
        found = measure(network, arguments.checkpoints)
        lost = 1 - sum(found) / len(found)
        limit = f", limit {LIMITS[network]:.0%}" if network in LIMITS else ""
        log(f"{network:8} ratio {spread(found, 4)}: {lost:.2%} lost on average{limit}")
        results[network] = {"ratios": found, "lost": lost}
    common.store(arguments.output, every=EVERY, **results)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--checkpoints", type=int, default=6, help="of a run")
    arguments = parser.parse_args(words)
    if arguments.checkpoints < 1:
        parser.error(f"--checkpoints: got {arguments.checkpoints}; at least 1 is needed")
    return arguments


if __name__ == "__main__":
    main()
