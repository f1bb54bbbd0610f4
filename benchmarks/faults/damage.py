"""Damaged files: whether a run or a reader ever goes on with one in silence.

    python benchmarks/faults/damage.py --output benchmarks/faults/results/NAME.json

Each trial damages one file of a copy of a run, and then resumes the run, or evaluates, exports or
loads it, in this process. The outcome is one of

- `older checkpoint`: the file is named, and the run ends with the weights of an undisturbed run;
- `told`: lines of `metrics.jsonl` were lost, and a warning says so;
- `refused`: an error of dglpipe names the file;
- `harmless`: no error, and the same results: the damaged file or value was not needed;
- `silent`, `traceback`, `unnamed`: what must not happen.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch._C._distributed_c10d import HashStore

import dglpipe
from benchmarks import common
from benchmarks.common import log
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.errors import DglpipeError
from dglpipe.runtime import run, worker
from dglpipe.runtime.evaluate import evaluate_run
from dglpipe.runtime.inference import export_run
from dglpipe.runtime.run_dir import RunDir

STAGES = 3
SETTINGS = (
    *("data=digits", "model.width=4", "model.dropout=0.2", "optimizer=adam"),
    *(f"pipeline.stages={STAGES}", "pipeline.processes=1", "pipeline.threads=1"),
    *("pipeline.split=even", "batch_size=700", "epochs=2", "log_every=5"),
    *("checkpoint.every=2", "checkpoint.keep=9", "resume=auto"),
)
"""Six steps; an undisturbed run has the checkpoints 2, 4 and 6."""
NEWEST, OLDER = 4, 2
"""The checkpoints of a run that was killed after step 5."""
BAD = ("silent", "traceback", "unnamed")
logger = logging.getLogger("dglpipe")


@dataclass(frozen=True)
class Trial:
    """The outcome of one damaged file."""

    files: str
    """`checkpoint` or `final`: the files of a run that was killed, or of a finished run."""
    damage: str
    file: str
    reader: str
    outcome: str
    message: str


# ---------------------------------------------------------------- damage of one file


Damage = Callable[[random.Random, Path], None]


def truncate(rng: random.Random, path: Path) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(rng: random.Random, path: Path) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero(rng: random.Random, path: Path) -> None:
    """A block of zeros."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    size = min(512, len(content) - start)
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


def empty(_: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def delete(_: random.Random, path: Path) -> None:
    path.unlink()


def garbage(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.randbytes(200))


def change_hash(rng: random.Random, path: Path) -> None:
    """Zeros in place of one SHA-256, in JSON that stays valid."""
    _change(rng, path, lambda value: type(value) is str and len(value) == 64, "0" * 64)


def change_size(rng: random.Random, path: Path) -> None:
    _change(rng, path, lambda value: type(value) is int, 12345)


def change_name(rng: random.Random, path: Path) -> None:
    _change(rng, path, lambda value: str(value).endswith(".safetensors"), "other.safetensors")


def _change(rng: random.Random, path: Path, fits: Callable[[Any], bool], new: Any) -> None:
    tree = json.loads(path.read_text())
    places = [(node, key) for node in _nodes(tree) for key in node if fits(node[key])]
    node, key = rng.choice(places)
    node[key] = new
    path.write_text(json.dumps(tree, indent=2))


def _nodes(tree: Any) -> list[Any]:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = [tree] if isinstance(tree, dict) else []
    return own + [node for child in children for node in _nodes(child)]


BYTES: dict[str, Damage] = {
    **{"truncated": truncate, "bit flipped": flip, "zeroed": zero, "empty": empty},
    **{"deleted": delete, "garbage": garbage},
}
TEXT = {how: act for how, act in BYTES.items() if how != "bit flipped"}
MANIFEST: dict[str, Damage] = {
    **BYTES,
    **{"hash changed": change_hash, "size changed": change_size, "name changed": change_name},
}


def swap(one: Path, other: Path) -> None:
    """Exchanges two files."""
    kept = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(kept)


# ---------------------------------------------------------------- runs and readers


@dataclass(frozen=True)
class Good:
    """Undisturbed runs and their results.

    Attributes:
        finished: directory of a finished run.
        killed: the same run as a kill after step 5 leaves it.
        other: a finished run with another seed.
        hashes: `weights_sha256` by stage.
        results: what each reader returns for `finished`.
    """

    finished: Path
    killed: Path
    other: Path
    hashes: list[str]
    lines: list[Any]
    results: dict[str, Any]


def prepare(folder: Path) -> Good:
    """Trains the undisturbed runs."""
    _in_this_process()
    finished, other, killed = folder / "finished", folder / "other", folder / "killed"
    resume(finished)
    resume(other, "seed=1")
    hashes = hashes_of(finished)
    shutil.copytree(finished, killed)
    shutil.rmtree(killed / "final")
    RunDir(killed).summary.unlink()
    shutil.rmtree(RunDir(killed).checkpoints / "step_00000006")
    for path in (killed, finished):
        shutil.rmtree(RunDir(path).logs)
        RunDir(path).logs.mkdir()
    results = {name: read(finished) for name, read in READERS.items()}
    return Good(finished, killed, other, hashes, lines_of(finished), results)


def _in_this_process() -> None:
    """Makes a run train in this process, without new processes and without a display."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    replaced: dict[Any, dict[str, Any]] = {
        worker: {
            "closing_table": lambda *_: None,
            "open_progress": lambda *_: _Quiet(),
            "TensorBoard": lambda _: _Quiet(),
        },
        run: {"launch": lambda plan, run_dir: worker.run_worker(plan, run_dir, HashStore())},
    }
    for module, functions in replaced.items():
        for name, function in functions.items():
            setattr(module, name, function)


class _Quiet:
    def line(self, line: Any) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """No resource is open."""


def resume(run_dir: Path, *words: str) -> None:
    """Trains, or goes on, as the command that started the run."""
    config = replace(_composed(words), run_dir=str(run_dir))
    stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        run.train(config)
    finally:
        sys.stderr.close()
        sys.stderr = stderr
        for handler in logger.handlers:
            handler.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@functools.cache
def _composed(words: tuple[str, ...]) -> Config:
    """Composing takes tenths of a second."""
    return compose(parse_arguments([*SETTINGS, *words]))


def hashes_of(run_dir: Path) -> list[str]:
    summary = json.loads(RunDir(run_dir).summary.read_text())
    return [stage["weights_sha256"] for stage in summary["per_stage"]]


def lines_of(run_dir: Path) -> list[Any]:
    """The lines of `metrics.jsonl` in a fixed order, without the speed."""
    lines = [json.loads(line) for line in RunDir(run_dir).metrics.read_text().splitlines()]
    for line in lines:
        del line["samples_per_second"]
    return sorted(lines, key=lambda line: (line["kind"], line["step"], str(line["stage"])))


def evaluate(run_dir: Path) -> Any:
    return evaluate_run(run_dir)


def export(run_dir: Path) -> Any:
    export_run(run_dir, run_dir / "export.safetensors", exits=True)
    return (run_dir / "export.safetensors").read_bytes()


def load(run_dir: Path) -> Any:
    images = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    with torch.no_grad():
        exits = dglpipe.load(run_dir).exits(images)
    return [None if logits is None else logits.tolist() for logits in exits]


READERS: dict[str, Callable[[Path], Any]] = {"evaluate": evaluate, "export": export, "load": load}


# ---------------------------------------------------------------- trials


Act = Callable[[random.Random, Path, Good], Path]
"""Damages a run directory and returns the damaged file."""
Case = tuple[str, str, Act]
"""Name of the damage, what it damages, and the damage."""


def on(name: str, damages: dict[str, Damage], path: Callable[[random.Random], str]) -> list[Case]:
    """Cases in which one file is damaged.

    Args:
        path: chooses the file, relative to the run directory.
    """

    def case(damage: Damage) -> Act:
        def act(rng: random.Random, run_dir: Path, good: Good) -> Path:
            file = run_dir / path(rng)
            damage(rng, file)
            return file

        return act

    return [(how, name, case(damage)) for how, damage in damages.items()]


def checkpoint(step: int, name: str) -> str:
    return f"checkpoints/step_{step:08d}/{name}"


def stage_file(rng: random.Random) -> str:
    return f"stage_{rng.randrange(STAGES)}.safetensors"


def swap_stages(folder: str) -> Act:
    def act(rng: random.Random, run_dir: Path, good: Good) -> Path:
        one, other = rng.sample(range(STAGES), 2)
        files = [run_dir / folder / f"stage_{j}.safetensors" for j in sorted((one, other))]
        swap(*files)
        return files[0]

    return act


def of_other_run(path: str) -> Act:
    """Replaces a file or folder by that of another run; `STAGE` is a random stage."""
    return copy_from(path, path, from_other=True)


def copy_from(source: str, target: str, from_other: bool = False) -> Act:
    """Replaces a file or folder by another of this or another run."""

    def act(rng: random.Random, run_dir: Path, good: Good) -> Path:
        name = stage_file(rng)
        origin = (good.other if from_other else run_dir) / source.replace("STAGE", name)
        file = run_dir / target.replace("STAGE", name)
        if origin.is_dir():
            shutil.copytree(origin, file, dirs_exist_ok=True)
            return file / "manifest.json"
        shutil.copy(origin, file)
        return file

    return act


def both(damage: Damage) -> Act:
    """Damages the newest and the older checkpoint."""

    def act(rng: random.Random, run_dir: Path, good: Good) -> Path:
        name = stage_file(rng)
        for step in (NEWEST, OLDER):
            damage(rng, run_dir / checkpoint(step, name))
        return run_dir / checkpoint(NEWEST, name)

    return act


def checkpoint_cases() -> list[Case]:
    """Damage of a run that was killed."""
    newest, older = checkpoint(NEWEST, ""), checkpoint(OLDER, "")
    return [
        *on("newest checkpoint", BYTES, lambda rng: newest + stage_file(rng)),
        ("stages swapped", "newest checkpoint", swap_stages(newest)),
        ("another step's", "newest checkpoint", copy_from(older + "STAGE", newest + "STAGE")),
        ("another run's", "newest checkpoint", of_other_run(newest + "STAGE")),
        ("another run's folder", "newest checkpoint", of_other_run(newest)),
        ("another step's folder", "newest checkpoint", copy_from(older, newest)),
        *on("newest manifest", MANIFEST, lambda _: newest + "manifest.json"),
        *on("older checkpoint", {"bit flipped": flip}, lambda rng: older + stage_file(rng)),
        *((how, "all checkpoints", both(act)) for how, act in BYTES.items()),
        *on("config.yaml", BYTES, lambda _: "config.yaml"),
        ("another run's", "config.yaml", of_other_run("config.yaml")),
        # A changed digit of a measurement cannot be told from another measurement.
        *on("metrics.jsonl", TEXT, lambda _: "metrics.jsonl"),
    ]


def final_cases() -> list[Case]:
    """Damage of a finished run."""
    return [
        *on("final weights", BYTES, lambda rng: f"final/{stage_file(rng)}"),
        ("stages swapped", "final weights", swap_stages("final")),
        ("another run's", "final weights", of_other_run("final/STAGE")),
        ("another run's folder", "final weights", of_other_run("final")),
        *on("final manifest", MANIFEST, lambda _: "final/manifest.json"),
        *on("config.yaml", BYTES, lambda _: "config.yaml"),
        ("another run's", "config.yaml", of_other_run("config.yaml")),
        *on("summary.json", BYTES, lambda _: "summary.json"),
    ]


def try_checkpoint(case: Case, rng: random.Random, good: Good, folder: Path) -> Trial:
    """Resumes a damaged copy of the run that was killed."""
    run_dir = folder / "run"
    shutil.copytree(good.killed, run_dir)
    file = case[2](rng, run_dir, good)

    def read() -> tuple[bool, str]:
        resume(run_dir)
        is_same = hashes_of(run_dir) == good.hashes and lines_of(run_dir) == good.lines
        logs = "".join(path.read_text() for path in RunDir(run_dir).logs.glob("*.log"))
        return is_same, "".join(part for part in logs.splitlines(True) if "WARNING" in part)

    outcome, message = judge(file, read)
    if outcome == "harmless" and message:
        outcome = "older checkpoint" if "checkpoint" in message else "told"
    return _trial("checkpoint", case, file, run_dir, "resume", outcome, message)


def try_final(case: Case, rng: random.Random, good: Good, folder: Path, reader: str) -> Trial:
    """Reads a damaged copy of the finished run."""
    run_dir = folder / "run"
    shutil.copytree(good.finished, run_dir)
    file = case[2](rng, run_dir, good)
    outcome, message = judge(file, lambda: (READERS[reader](run_dir) == good.results[reader], ""))
    return _trial("final", case, file, run_dir, reader, outcome, message)


def judge(file: Path, read: Callable[[], tuple[bool, str]]) -> tuple[str, str]:
    """The outcome and the message of a reader.

    Args:
        read: returns whether the results equal the undisturbed run, and its warnings.
    """
    try:
        is_same, warnings = read()
    except DglpipeError as error:
        return "refused" if file.name in str(error) else "unnamed", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    if not is_same:
        return "silent" if file.name not in warnings else "told", warnings
    if warnings and file.name not in warnings:
        return "unnamed", warnings
    return "harmless", warnings


def _trial(
    files: str, case: Case, file: Path, run_dir: Path, reader: str, outcome: str, message: str
) -> Trial:
    short = file.relative_to(run_dir).as_posix()
    text = message.replace(str(run_dir), "RUN")
    return Trial(files, f"{case[1]}: {case[0]}", short, reader, outcome, text)


def measure(copies: int, seed: int, only: Sequence[str] = ()) -> list[Trial]:
    """Tries `copies` damaged copies, alternately of a killed and of a finished run.

    Args:
        only: `what: how` of the cases to try; empty: all.
    """
    rng, trials = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        good = prepare(Path(folder))
        kinds = [
            [case for case in cases if not only or f"{case[1]}: {case[0]}" in only]
            for cases in (checkpoint_cases(), final_cases())
        ]
        for number in range(copies):
            cases = kinds[number % 2]
            case = cases[number // 2 % len(cases)]
            with tempfile.TemporaryDirectory(dir=folder) as own:
                if number % 2 == 0:
                    trial = try_checkpoint(case, rng, good, Path(own))
                else:
                    # Each case meets each reader.
                    turn = number // 2 // len(cases) + number // 2
                    reader = list(READERS)[turn % len(READERS)]
                    trial = try_final(case, rng, good, Path(own), reader)
            trials.append(trial)
            if trial.outcome in BAD:
                log(
                    f"{trial.outcome}: {trial.damage} ({trial.file}), {trial.reader}", trial.message
                )
    return trials


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    trials = measure(arguments.copies, arguments.seed)
    counts = Counter((trial.files, trial.outcome) for trial in trials)
    for (files, outcome), count in sorted(counts.items()):
        log(f"{files:10} {outcome:16} {count}")
    totals = {outcome: sum(one.outcome == outcome for one in trials) for outcome in BAD}
    log(f"{len(trials)} damaged files: {totals}")
    rows = [asdict(one) for one in trials]
    outcomes = {f"{files}: {outcome}": count for (files, outcome), count in counts.items()}
    common.store(arguments.output, copies=len(trials), outcomes=outcomes, trials=rows)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--copies", type=int, default=240, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
