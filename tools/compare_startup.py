"""Compare start-up time and memory of two checkouts, in alternating rounds.

    python tools/compare_startup.py BEFORE AFTER --rounds 5 --output FILE.json

**First step.** Seconds from the start of `dglpipe train` until metrics.jsonl has the training line
of step 1 of the last stage, with log_every=1: the last stage has then finished its first optimizer
step. The run writes lines at intervals of up to 0.1 s, so a value is up to 0.1 s too large. Peak
memory is VmHWM of every process of the run, read until that moment: the sum over the processes
(pages that processes share count once for each) and the largest process. Then the run is
interrupted. Runs: the quickstart (all defaults) and `resnet152` in four stages on small images.

**Commands.** Wall seconds of short commands, from start to exit, and two ratios of the same round:
`--version` over an empty Python, and `train --help` over importing hydra and omegaconf.

Bytecode is compiled beforehand, and one round of warm-up is not measured.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from checkouts import LABELS, PACKAGE, Checkout, CheckoutError, open_checkouts
from comparison import HEADER, alternate, compare, parser_of, show, store
from first_step import FirstStep, measure

MIB = 2**20
RESNET152 = [
    *("model=resnet152", "pipeline.stages=4", "data=synthetic", "data.image_size=32"),
    *("data.samples=64", "batch_size=4", "max_steps=1", "epochs=1", "evaluate.every=0"),
]
RUNS: dict[str, tuple[list[str], int]] = {"quickstart": ([], 2), "resnet152": (RESNET152, 4)}
"""Overrides and K."""
SCRIPT = "SCRIPT"
"""Placeholder in a command for the console script of the checkout."""
EMPTY, IMPORTS = "python -c pass", 'python -c "import hydra, omegaconf"'
VERSION, SCRIPT_VERSION = f"python -m {PACKAGE} --version", f"{PACKAGE} --version"
HELP = f"{PACKAGE} train --help"
COMMANDS = {
    EMPTY: ["-c", "pass"],
    IMPORTS: ["-c", "import hydra, omegaconf"],
    VERSION: ["-m", PACKAGE, "--version"],
    SCRIPT_VERSION: [SCRIPT, "--version"],
    HELP: [SCRIPT, "train", "--help"],
}
RATIOS = {
    "--version / empty Python": (VERSION, EMPTY),
    "--version (script) / empty Python": (SCRIPT_VERSION, EMPTY),
    "--help / hydra, omegaconf": (HELP, IMPORTS),
}
REPEATS = {EMPTY: 5, IMPORTS: 3, VERSION: 5, SCRIPT_VERSION: 5, HELP: 1}
"""Repetitions of each command in a round; the median is used."""
COMMANDS_PART = "commands"
"""Name of the measurements of commands for --only, in addition to RUNS."""

Values = dict[str, dict[str, list[float]]]
"""Quantity -> label -> one value per round."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parts = [COMMANDS_PART, *RUNS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="NAME")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    print(HEADER)
    with open_checkouts(arguments) as pair:
        for name in arguments.only:
            results |= report(values_of(name, pair, arguments.rounds))
        words = {name: overrides for name, (overrides, _) in RUNS.items()}
        store(arguments.output, pair, overrides=words, results=results)


def values_of(name: str, pair: Sequence[Checkout], rounds: int) -> Values:
    """Measure the commands or one of RUNS."""
    if name == COMMANDS_PART:
        return time_commands(pair, rounds)
    return first_steps(name, pair, rounds)


def report(values: Values) -> dict[str, Any]:
    """Print and return the comparison of each quantity."""
    results = {name: compare(by_label) for name, by_label in values.items()}
    for name, comparison in results.items():
        print(show(name, comparison, digits=0 if "MiB" in name else 3), flush=True)
    return results


def time_commands(pair: Sequence[Checkout], rounds: int) -> Values:
    """Seconds of every command and their ratios."""
    values = _empty([*COMMANDS, *RATIOS])
    for checkout in pair:
        _seconds_of_commands(checkout)
    for _, checkout in alternate(pair, rounds):
        seconds = _seconds_of_commands(checkout)
        for name, value in (seconds | ratios(seconds)).items():
            values[name][checkout.label].append(value)
    return values


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """RATIOS of one round."""
    return {name: seconds[one] / seconds[other] for name, (one, other) in RATIOS.items()}


def _seconds_of_commands(checkout: Checkout) -> dict[str, float]:
    return {
        name: median(_seconds(checkout, words) for _ in range(REPEATS[name]))
        for name, words in COMMANDS.items()
    }


def _seconds(checkout: Checkout, words: Sequence[str]) -> float:
    words = [str(checkout.script) if word == SCRIPT else word for word in words]
    start = time.perf_counter()
    process = checkout.start(words, checkout.folder, subprocess.DEVNULL)
    status = process.wait()
    seconds = time.perf_counter() - start
    if status:
        raise CheckoutError(f"{checkout.label}: {' '.join(words)}: status {status}")
    return seconds


def first_steps(name: str, pair: Sequence[Checkout], rounds: int) -> Values:
    """Seconds and memory up to the first step of one of RUNS."""
    quantities = ("seconds to step 1", "MiB, sum", "MiB, largest process", "processes")
    values = _empty([f"{name}: {quantity}" for quantity in quantities])
    for checkout in pair:
        first_step(name, checkout)
    for _, checkout in alternate(pair, rounds):
        step = first_step(name, checkout)
        memory = sum(step.peaks) / MIB, step.peaks[0] / MIB
        measured = (step.seconds, *memory, len(step.peaks))
        for by_label, value in zip(values.values(), measured, strict=True):
            by_label[checkout.label].append(value)
    return values


def first_step(name: str, checkout: Checkout) -> FirstStep:
    """One run up to its first step."""
    overrides, stages = RUNS[name]
    with tempfile.TemporaryDirectory(prefix="compare_") as scratch:
        return measure(checkout, overrides, stages, Path(scratch) / "run")


def _empty(names: Sequence[str]) -> Values:
    return {name: {label: [] for label in LABELS} for name in names}


if __name__ == "__main__":
    main()
