"""A stage that is killed and started again alone: what the others do meanwhile, and the accuracy.

    python benchmarks/faults/stage_restart.py --output benchmarks/faults/results/NAME.json

Four asynchronous stages on the digits. For every seed, one run without a kill, and one run for each
stage in which the process of this stage gets SIGKILL after half of its updates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log, spread
from benchmarks.faults.commands import Command, kill
from dglpipe.runtime.run_dir import RunDir

STAGES = 4
SETTINGS = (
    *("method=dgl_async", "data=digits", "model.width=16", f"pipeline.stages={STAGES}"),
    *("pipeline.threads=1", "batch_size=64", "evaluate.every=20", "log_every=1"),
    *("checkpoint.every=100", "timeout_s=120"),
)
FINISH_S = 900.0
POLL_S = 0.02


@dataclass(frozen=True)
class Outage:
    """One kill and what followed.

    Attributes:
        stage: the killed stage.
        lost: updates of this stage since its last checkpoint.
        seconds: from the kill until the stage goes on.
        updates: updates of the other stages in this time, by stage.
        stayed: whether the other stages kept their processes to the end.
        accuracy: of every exit, after the last epoch.
    """

    seed: int
    stage: int
    lost: int
    seconds: float
    updates: dict[int, int]
    stayed: bool
    accuracy: list[float]
    ensemble: float


def updates_of(run_dir: RunDir) -> Counter[int]:
    """Stage -> updates, from the training lines of a run in progress."""
    found: Counter[int] = Counter()
    if run_dir.metrics.exists():
        for text in run_dir.metrics.read_text().split("\n")[:-1]:
            line = json.loads(text)
            if line["kind"] == "train":
                found[line["stage"]] = max(found[line["stage"]], line["step"])
    return found


def processes(run_dir: RunDir) -> dict[int, int]:
    """Stage -> process ID."""
    workers = json.loads(run_dir.workers.read_text())
    return {worker["stages"][0]: worker["pid"] for worker in workers}


def start(path: Path, seed: int, epochs: int, *more: str) -> Command:
    words = (*SETTINGS, f"seed={seed}", f"epochs={epochs}", *more, f"run_dir={path}")
    command = [sys.executable, "-m", "dglpipe", "train", *words]
    return Command(command, path.with_name(f"{path.name}.txt"))


def finish(command: Command, path: Path) -> dict[str, Any]:
    """The `test` part of the summary of a run, when it has finished."""
    status = command.wait(FINISH_S)
    command.end()
    if status != 0:
        raise RuntimeError(f"status {status}\n{path.with_name(f'{path.name}.txt').read_text()}")
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return dict(summary["test"])


def undisturbed(folder: Path, seed: int, epochs: int) -> dict[str, Any]:
    path = folder / f"whole_{seed}"
    return finish(start(path, seed, epochs), path)


def disturbed(folder: Path, seed: int, epochs: int, stage: int, half: int) -> Outage:
    """A run in which `stage` is killed after `half` updates."""
    path = folder / f"killed_{seed}_{stage}"
    run_dir = RunDir(path)
    command = start(path, seed, epochs, "on_failure=restart_stage")
    try:
        _await(command, lambda: updates_of(run_dir)[stage] >= half)
        before, first = updates_of(run_dir), processes(run_dir)
        kill(first[stage])
        began = time.monotonic()
        record = re.compile(rf"stage {stage}\)? goes on after step (\d+)")
        _await(command, lambda: record.search(run_dir.log(stage).read_text()))
        seconds = time.monotonic() - began
        after, second = updates_of(run_dir), processes(run_dir)
        found = record.search(run_dir.log(stage).read_text())
        assert found is not None
        test = finish(command, path)
    finally:
        command.end()
    others = [other for other in range(STAGES) if other != stage]
    return Outage(
        seed,
        stage,
        before[stage] - int(found[1]),
        seconds,
        {other: after[other] - before[other] for other in others},
        all(first[other] == second[other] for other in others) and first != second,
        test["accuracy"],
        test["ensemble_accuracy"],
    )


def _await(command: Command, holds: Any) -> None:
    deadline = time.monotonic() + FINISH_S
    while not holds():
        if command.status() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run has ended with status {command.status()}")
        time.sleep(POLL_S)


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    whole: list[dict[str, Any]] = []
    outages: list[Outage] = []
    steps = arguments.epochs * 23
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            whole.append(undisturbed(Path(folder), seed, arguments.epochs))
            log(f"seed {seed} undisturbed: {exits(whole[-1]['accuracy'])}")
            for stage in arguments.stages:
                one = disturbed(Path(folder), seed, arguments.epochs, stage, steps // 2)
                outages.append(one)
                log(row(one))
    log(*closing(whole, outages))
    common.store(
        arguments.output,
        settings=SETTINGS,
        epochs=arguments.epochs,
        undisturbed=whole,
        outages=[asdict(one) for one in outages],
    )
    sys.exit(0 if all(one.stayed for one in outages) else 1)


def exits(accuracy: Sequence[float]) -> str:
    return " ".join(f"{value:.2%}" for value in accuracy)


def row(one: Outage) -> str:
    made = ", ".join(f"stage {stage}: {count}" for stage, count in one.updates.items())
    kept = "others kept their processes" if one.stayed else "OTHERS WERE STARTED AGAIN"
    return (
        f"seed {one.seed} stage {one.stage} killed: back after {one.seconds:.1f} s, "
        f"{one.lost} updates lost; updates meanwhile {made}; {kept}; {exits(one.accuracy)}"
    )


def closing(whole: Sequence[Mapping[str, Any]], outages: Sequence[Outage]) -> list[str]:
    """Median and spread of each figure."""
    plain = [test["accuracy"][-1] for test in whole]
    killed = [one.accuracy[-1] for one in outages]
    made = [count for one in outages for count in one.updates.values()]
    return [
        f"seconds until the stage goes on: {spread([one.seconds for one in outages], 1)}",
        f"updates of each other stage meanwhile: {spread(made, 0)}",
        f"last exit, undisturbed: {spread([100 * value for value in plain])} %",
        f"last exit, one stage killed: {spread([100 * value for value in killed])} %",
        f"difference of the medians: {100 * (median(killed) - median(plain)):+.2f} points",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, nargs="+", default=list(range(STAGES)))
    parser.add_argument("--epochs", type=int, default=60)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
