"""Compare the training throughput of two checkouts in alternating rounds.

    python tools/compare_throughput.py BEFORE AFTER --rounds 5 --output FILE.json

Trains `cnn6` at K=2 and the narrow network (`cnn4` of width 16, K=2), with one thread per process,
and reads `throughput.samples_per_second` from summary.json. A ratio is after/before of one round.
The order of the checkouts alternates between rounds, so that a drift of the machine cancels. Run on
an otherwise idle machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from checkouts import LABELS, Checkout, open_checkouts
from comparison import HEADER, alternate, compare, parser_of, show, store

BATCH_SIZE = 128
COMMON = [
    *("data=synthetic", "pipeline.stages=2", "pipeline.threads=1", "pipeline.backend=gloo"),
    *(f"batch_size={BATCH_SIZE}", "epochs=1", "evaluate.every=0"),
]
NETWORKS = {
    "cnn6": (["model=cnn6"], 40),
    "narrow": (["model=cnn4", "model.width=16"], 120),
}
"""Overrides and steps. The first quarter of the steps, at most 10, is not measured."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    results = {}
    print(HEADER)
    with open_checkouts(arguments) as pair:
        for name in arguments.only:
            results[name] = compare_network(name, pair, arguments.rounds)
            print(show(f"{name}, samples a second", results[name], digits=1), flush=True)
        words = {name: overrides(name) for name in arguments.only}
        store(arguments.output, pair, overrides=words, samples_per_second=results)


def compare_network(name: str, pair: tuple[Checkout, Checkout], rounds: int) -> dict[str, Any]:
    """Samples a second of one network, `rounds` times for each checkout."""
    rates: dict[str, list[float]] = {label: [] for label in LABELS}
    with tempfile.TemporaryDirectory(prefix="compare_") as scratch:
        for number, checkout in alternate(pair, rounds):
            run_dir = Path(scratch) / f"{checkout.label}_{number}"
            with checkout.training(overrides(name), run_dir) as training:
                summary = training.summary()
            rates[checkout.label].append(summary["throughput"]["samples_per_second"])
    return compare(rates)


def overrides(name: str) -> list[str]:
    """Words of the command line; the training split has as many rows as all steps."""
    network, steps = NETWORKS[name]
    return [*network, *COMMON, f"data.samples={BATCH_SIZE * steps}", f"max_steps={steps}"]


if __name__ == "__main__":
    main()
