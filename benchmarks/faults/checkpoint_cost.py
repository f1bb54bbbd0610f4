"""What checkpoints cost: throughput with one checkpoint in 50 steps over throughput with none.

    python benchmarks/faults/checkpoint_cost.py --output benchmarks/faults/results/NAME.json

Runs with and without checkpoints alternate. A ratio is taken round by round, so that a drift of the
machine cancels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log, ratios, spread

EVERY = 50
NETWORKS = {
    "cnn6": [
        *("model=cnn6", "model.width=64", "data=synthetic", "data.image_size=32"),
        "batch_size=128",
    ],
    "digits": ["data=digits"],
}
LIMITS = {"cnn6": 0.01}
"""Largest share of the throughput that checkpoints may cost; digits has no limit."""


def measure(network: str, steps: int, repeats: int) -> list[float]:
    """Ratios of the throughput with checkpoints to the throughput without, by round."""
    words = [*NETWORKS[network], f"max_steps={steps}", "evaluate.every=0", "pipeline.stages=2"]
    if network == "digits":
        words.append("epochs=1000")
    else:
        words.append(f"data.samples={128 * steps}")
    ways = {
        "without": partial(_throughput, words),
        "with": partial(_throughput, [*words, f"checkpoint.every={EVERY}"]),
    }
    found = common.rounds(ways, repeats)
    for name, values in found.items():
        log(f"{network:8} {name:8} {spread(values, 0)} samples a second")
    return ratios(found["with"], found["without"])


def _throughput(words: Sequence[str]) -> float:
    return common.train(words).samples_per_second


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    results = {}
    for network in arguments.networks:
        found = measure(network, arguments.steps, arguments.repeats)
        lost = 1 - median(found)
        limit = f", limit {LIMITS[network]:.0%}" if network in LIMITS else ""
        log(f"{network:8} ratio {spread(found, 4)}: {lost:.2%} lost{limit}")
        results[network] = {"ratios": found, "lost": lost}
    common.store(
        arguments.output, every=EVERY, steps=arguments.steps, repeats=arguments.repeats, **results
    )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=210, help="of a run")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    arguments = parser.parse_args(words)
    if arguments.steps <= EVERY + 10:
        parser.error(f"--steps: got {arguments.steps}; more than {EVERY + 10} is needed")
    return arguments


if __name__ == "__main__":
    main()
