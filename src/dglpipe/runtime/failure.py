"""First failure wins: what went wrong where, kept apart from what that did to the others.

A process that fails writes a record with the time. One that merely lost its neighbour
marks its own as secondary. Whoever reports shows the earliest primary one.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dglpipe.errors import PeerLostError, UserError
from dglpipe.files import write_json
from dglpipe.runtime.run_dir import RunDir


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of one process."""

    time_ns: int
    rank: int
    where: str
    """The process by rank and stage."""
    step: int
    """The training step under way; 0 before the first."""
    primary: bool
    """Not the consequence of another process's end."""
    user: bool
    """A mistake in what the user gave: the message says all, without a traceback."""
    message: str
    trace: str

    def describe(self, log: Path, checkpoints: bool) -> str:
        """The whole story, the cause first; then what to do, and where the log is.

        Args:
            checkpoints: whether the run was to write any.
        """
        when = f"at step {self.step}" if self.step else "before the first step"
        body = self.message if self.user else self.trace.rstrip()
        return (
            f"{body}\n{self.where} failed {when}: {self.message}\n{advice(checkpoints)}\nlog: {log}"
        )

    def line(self) -> str:
        """What a process says that failed because another one did."""
        return f"{self.where} stopped at step {self.step}: {self.message}"


def advice(checkpoints: bool) -> str:
    """How to go on after a failure."""
    if checkpoints:
        return "the same command with resume=auto goes on from the last complete checkpoint"
    return (
        "to train again give another run_dir, or this one with resume=auto; with "
        "checkpoint.every=STEPS such a run goes on where it was"
    )


def record(error: BaseException, rank: int, where: str, step: int) -> Failure:
    """The failure of the process that calls this."""
    return Failure(
        time_ns=time.time_ns(),
        rank=rank,
        where=where,
        step=step,
        primary=not isinstance(error, PeerLostError),
        user=isinstance(error, UserError),
        message=f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}",
        trace="".join(traceback.format_exception(error)),
    )


def write(failure: Failure, run_dir: RunDir) -> None:
    """Leaves the record for whoever reports, unless another rank has removed the directory."""
    if run_dir.logs.is_dir():
        with contextlib.suppress(FileNotFoundError):
            write_json(run_dir.failure(failure.rank), asdict(failure))


def read(run_dir: RunDir) -> list[Failure]:
    """All records of a run, the one that explains the others first."""
    files = run_dir.logs.glob("failure_*.json")
    return in_order([Failure(**json.loads(file.read_text())) for file in files])


def read_own(run_dir: RunDir, rank: int) -> Failure:
    """The record of one rank."""
    return Failure(**json.loads(run_dir.failure(rank).read_text()))


def in_order(failures: Sequence[Failure]) -> list[Failure]:
    """Primary before secondary, then by time."""
    return sorted(failures, key=lambda failure: (not failure.primary, failure.time_ns))
