"""Random kills: whether the same command finishes to the same weights and lines of metrics.

    python benchmarks/faults/kills.py --output benchmarks/faults/results/NAME.json

Each trial starts one of six kinds of runs, sends SIGKILL to the launcher, to a worker, or to all
processes at a random moment of a given phase, and starts the same command (`resume=auto`) until
the run finishes. A part of the trials uses `max_restarts=3` instead and kills only workers: these
runs have to finish by themselves. A trial is right if the weights and every line of
`metrics.jsonl` equal the run without a kill, every line exists once, and no process is left. The
results are stored after every trial, and the same command continues after the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log
from benchmarks.faults.commands import Command, kill
from dglpipe.runtime.run_dir import RunDir

DGLPIPE = (sys.executable, "-m", "dglpipe", "train")
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
    *("--nproc-per-node=2", "-m", "dglpipe", "train"),
)
SAVE_EVERY = 7
SETTINGS = (
    *("data=digits", "model.width=8", "model.dropout=0.2", "pipeline.threads=1"),
    *("pipeline.split=even", "epochs=12", "timeout_s=60"),
    # A line of metrics covers steps before and after a checkpoint.
    *("log_every=3", f"checkpoint.every={SAVE_EVERY}", "resume=auto"),
)
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dgl": (DGLPIPE, ("pipeline.stages=3",)),
    "replicas": (DGLPIPE, ("pipeline.stages=2", "pipeline.replicas=2")),
    "sequential": (DGLPIPE, ("method=sequential", "pipeline.stages=2", "epochs=6")),
    "simulated": (
        DGLPIPE,
        ("method=dgl_async", "method.simulate=true", "pipeline.stages=3", "pipeline.processes=1"),
    ),
    "1f1b": (DGLPIPE, ("method=backprop", "pipeline.stages=2", "method.schedule=1f1b")),
    "torchrun": (TORCHRUN, ("pipeline.stages=2",)),
}
"""Name -> launcher, settings."""
PHASES = ("start-up", "steady", "evaluation", "checkpoint", "epoch edge", "end")
VICTIMS = ("launcher", "worker", "session")
ATTEMPTS = 4
FINISH_S = 600.0
GONE_S = 30.0
"""Maximum seconds from a kill to the end of the last process."""
POLL_S = 0.002
JITTER_S = 0.3
"""Maximum pause after the event that opens the start-up phase."""


# ---------------------------------------------------------------- results of a run


@dataclass(frozen=True)
class Outcome:
    """Weights and lines of a finished run."""

    hashes: tuple[str, ...]
    lines: dict[tuple[str, str, int], tuple[Any, ...]]
    """(kind, stage, step) -> values that a kill may not change."""
    repeated: int
    """Lines beyond the first of their kind, stage and step."""

    def steps(self, kind: str) -> list[int]:
        """Steps with a line of `kind`, in ascending order."""
        return sorted({step for found, _, step in self.lines if found == kind})


def read_outcome(path: Path) -> Outcome:
    """The outcome of the finished run in `path`."""
    run_dir = RunDir(path)
    summary = json.loads(run_dir.summary.read_text())
    found: Counter[tuple[str, str, int]] = Counter()
    lines = {}
    for text in run_dir.metrics.read_text().splitlines():
        line = json.loads(text)
        key = line["kind"], str(line["stage"]), line["step"]
        found[key] += 1
        lines[key] = line["epoch"], line["loss"], line["accuracy"], line["learning_rate"]
    hashes = tuple(stage["weights_sha256"] for stage in summary["per_stage"])
    return Outcome(hashes, lines, sum(found.values()) - len(found))


@dataclass
class Trial:
    """One kill and its consequences."""

    case: str
    phase: str
    victim: str
    restarts: bool
    moment: str = ""
    """What was seen in the run directory before the kill."""
    hit: bool = False
    """Whether the run was still in progress."""
    gone_s: float | None = None
    """Seconds from the kill to the end of the last process; with `restarts` to the end of the
    run."""
    commands: int = 1
    finished: bool = False
    equal: bool = False
    missing: int = 0
    repeated: int = 0
    different: int = 0
    left: int = 0
    """Processes after the end."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        lines = self.missing or self.repeated or self.different
        return self.finished and self.equal and not (lines or self.left or self.problems)


# ---------------------------------------------------------------- moments


@dataclass(frozen=True)
class Moment:
    """An event in the run directory, and a pause in seconds after it."""

    name: str
    has_come: Callable[[], bool]
    pause: float = 0.0


class Watch:
    """Tells whether `metrics.jsonl` has a line of a kind and step."""

    def __init__(self, run_dir: RunDir, kind: str, step: int) -> None:
        self._path = run_dir.metrics
        self._parts = f'"kind": "{kind}"', f'"step": {step},'
        self._offset = 0

    def __call__(self) -> bool:
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(self._offset)
            *lines, _ = file.read().split(b"\n")
            self._offset += sum(len(line) + 1 for line in lines)
            return any(all(part.encode() in line for part in self._parts) for line in lines)
        return False


def moment(phase: str, whole: Outcome, run_dir: RunDir, rng: random.Random) -> Moment:
    """A random moment of `phase`: its name, and a function that tells whether it has come."""
    trains, tests = whole.steps("train"), whole.steps("test")
    saved = range(SAVE_EVERY, trains[-1] + 1, SAVE_EVERY)
    if phase == "start-up":
        file = rng.choice([run_dir.config, run_dir.log(0), run_dir.workers])
        return Moment(f"{file.name} exists", file.exists, rng.uniform(0, JITTER_S))
    if phase == "steady":
        step = rng.choice([step for step in trains[1:-1] if step not in tests])
        return Moment(f"train line of step {step}", Watch(run_dir, "train", step))
    if phase == "evaluation":
        step = rng.choice(tests)
        if rng.random() < 0.5:
            return Moment(f"test line of step {step}", Watch(run_dir, "test", step))
        return Moment(f"evaluation after step {step}", Watch(run_dir, "train", step))
    if phase == "epoch edge":
        step = rng.choice(tests[:-1])
        after = next(other for other in trains if other > step)
        return Moment(f"train line of step {after}", Watch(run_dir, "train", after))
    if phase == "checkpoint":
        folder = run_dir.checkpoints / f"step_{rng.choice(saved):08d}"
        return Moment(f"{folder.name} exists", folder.exists)
    file = rng.choice([run_dir.final(0), run_dir.manifest, run_dir.summary])
    return Moment(f"{file.name} exists", file.exists)


# ---------------------------------------------------------------- trials


class Bench:
    """Runs trials in a folder; keeps the outcome of the run without a kill of each case.

    Args:
        overrides: further settings of all runs.
    """

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self._folder = folder
        self._overrides = overrides
        self._whole: dict[str, Outcome] = {}
        self._count = itertools.count()

    def whole(self, case: str) -> Outcome:
        """The outcome of `case` without a kill."""
        if case not in self._whole:
            path = self._folder / case
            command = self._start(case, path)
            status = command.wait(FINISH_S)
            command.end()
            if status:
                raise RuntimeError(f"{case}: status {status}\n{_output(path).read_text()}")
            self._whole[case] = read_outcome(path)
        return self._whole[case]

    def _start(self, case: str, path: Path, *more: str) -> Command:
        launcher, settings = CASES[case]
        words = (*SETTINGS, *settings, *self._overrides, *more)
        # A later setting of the same key counts; Hydra refuses a key that is given twice.
        last = {word.partition("=")[0]: word for word in words}
        return Command([*launcher, *last.values(), f"run_dir={path}"], _output(path))

    def run(self, trial: Trial, rng: random.Random) -> None:
        """Makes one trial and stores what it found in `trial`."""
        whole = self.whole(trial.case)
        path = self._folder / f"trial_{next(self._count)}"
        more = ("max_restarts=3",) if trial.restarts else ()
        command = self._start(trial.case, path, *more)
        try:
            self._kill(trial, command, moment(trial.phase, whole, RunDir(path), rng), path, rng)
            self._await_end(trial, command)
        finally:
            trial.left += len(command.end())
        while not (trial.restarts or trial.finished) and trial.commands < ATTEMPTS:
            trial.commands += 1
            command = self._start(trial.case, path, *more)
            status = command.wait(FINISH_S)
            trial.left += _after_end(command)
            trial.finished = status == 0
        if trial.finished:
            _compare(trial, whole, read_outcome(path))
        if not trial.is_right:
            text = _output(path).read_text()[-3000:]
            trial.problems.append(text.replace(str(self._folder), "FOLDER"))

    def _kill(
        self, trial: Trial, command: Command, when: Moment, path: Path, rng: random.Random
    ) -> None:
        trial.moment, deadline = when.name, time.monotonic() + FINISH_S
        while not when.has_come() and command.status() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        time.sleep(when.pause)
        pids = _victims(trial.victim, command, path, rng)
        trial.hit = bool([pid for pid in pids if kill(pid)]) and not _is_finished(path)

    def _await_end(self, trial: Trial, command: Command) -> None:
        began = time.monotonic()
        deadline = began + (FINISH_S if trial.restarts else GONE_S)
        while command.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        trial.gone_s = round(time.monotonic() - began, 2)
        trial.finished = command.status() == 0


def _output(path: Path) -> Path:
    return path.with_name(f"{path.name}.txt")


def _is_finished(path: Path) -> bool:
    return RunDir(path).status() == "finished"


def _after_end(command: Command) -> int:
    """The number of processes that a command leaves."""
    deadline = time.monotonic() + GONE_S
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(command.end())


def _victims(victim: str, command: Command, path: Path, rng: random.Random) -> list[int]:
    if victim == "session":
        return command.alive()
    if victim == "launcher":
        return [command.pid]
    workers = RunDir(path).workers
    while command.status() is None:  # during start-up
        with contextlib.suppress(OSError):
            return [rng.choice(json.loads(workers.read_text()))["pid"]]
        time.sleep(POLL_S)
    return []


def _compare(trial: Trial, whole: Outcome, found: Outcome) -> None:
    trial.equal = found.hashes == whole.hashes
    trial.missing = len(whole.lines.keys() - found.lines.keys())
    trial.repeated = found.repeated + len(found.lines.keys() - whole.lines.keys())
    common_keys = whole.lines.keys() & found.lines.keys()
    trial.different = sum(whole.lines[key] != found.lines[key] for key in common_keys)


def plan_trials(kills: int, restarts: int, rng: random.Random) -> list[Trial]:
    """Trials over all cases and phases: the last `restarts` of them with `max_restarts`."""
    trials = []
    for count, again in ((kills - restarts, False), (restarts, True)):
        cases = [case for case in CASES if not (again and case == "torchrun")]
        for number in range(count):
            at, turn = number % len(cases), number // len(cases)
            victim = "worker" if again else rng.choice(VICTIMS)
            trials.append(Trial(cases[at], PHASES[(at + turn) % len(PHASES)], victim, again))
    return trials


# ---------------------------------------------------------------- command line


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    trials = plan_trials(arguments.kills, arguments.restarts, random.Random(arguments.seed))
    known = earlier(arguments.output)
    trials[: len(known)] = known
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.overrides)
        for number, trial in enumerate(trials):
            if number >= len(known):
                bench.run(trial, random.Random(f"{arguments.seed}/{number}"))
                rows = [vars(one) for one in trials[: number + 1]]
                common.store(arguments.output, counts=count(trials[: number + 1]), trials=rows)
            log(row(number, trial))
    counts = count(trials)
    log(*(f"{name}: {value}" for name, value in counts.items()))
    sys.exit(0 if counts["right"] == len(trials) else 1)


def earlier(output: str | None) -> list[Trial]:
    """The trials of a run of this script that was stopped."""
    if output is None or not Path(output).exists():
        return []
    return [Trial(**trial) for trial in json.loads(Path(output).read_text())["trials"]]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=60, help="number of trials")
    parser.add_argument(
        "--restarts", type=int, help="trials with max_restarts=3; a third of the kills unless given"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("overrides", nargs="*", help="settings of every run")
    arguments = parser.parse_args(words)
    if arguments.restarts is None:
        arguments.restarts = arguments.kills // 3
    return arguments


def row(number: int, trial: Trial) -> str:
    """One line of the table of trials."""
    kind = f"{trial.victim}, max_restarts" if trial.restarts else trial.victim
    verdict = "right" if trial.is_right else "WRONG"
    lines = f"missing {trial.missing} repeated {trial.repeated} different {trial.different}"
    return (
        f"{number + 1:3} {trial.case:10} {trial.phase:10} {kind:20} {trial.moment:28} "
        f"gone {trial.gone_s} s, commands {trial.commands}, {verdict}: "
        f"equal {trial.equal}, {lines}, left {trial.left}"
    )


def count(trials: Sequence[Trial]) -> dict[str, int]:
    """The counts over all trials."""
    return {
        "kills": len(trials),
        "kills before the end of the run": sum(trial.hit for trial in trials),
        "finished": sum(trial.finished for trial in trials),
        "finished without a second command": sum(
            trial.finished and trial.restarts for trial in trials
        ),
        "equal weights": sum(trial.equal for trial in trials),
        "lines missing": sum(trial.missing for trial in trials),
        "lines repeated": sum(trial.repeated for trial in trials),
        "lines different": sum(trial.different for trial in trials),
        "processes left": sum(trial.left for trial in trials),
        "right": sum(trial.is_right for trial in trials),
    }


if __name__ == "__main__":
    main()
