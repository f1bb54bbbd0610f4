"""Failure records of a run: separates the first cause from its consequences.

A process that fails writes a record with a time stamp. A process that fails because it lost its
neighbour marks its record as secondary. The error of the run is the earliest primary record.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dglpipe.errors import (
    DamagedError,
    LoadingError,
    PeerLostError,
    RejoinError,
    RunFailedError,
    StorageError,
    UserError,
)
from dglpipe.files import try_write_json
from dglpipe.methods.run_plan import RunPlan
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import unfinished

PEER_PAUSE_S = 2.0
"""Seconds that a process under torchrun waits after the loss of a neighbour. The process that
failed first then exits first, and torchrun reports that process."""


_unwritten: dict[int, Failure] = {}
"""Rank -> record of this process that could not be written."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure record of one process.

    Attributes:
        where: the process by rank and stage.
        step: the training step in progress; 0 before the first.
        primary: False if the process failed because another process exited.
        user: whether the cause is an error in the user's input; its report has no traceback.
        trace: the traceback; empty if the message is the whole report.
        damaged: whether no checkpoint is intact; the message says what to do.
        hint: what to do about a file that cannot be written; the report has no traceback.
        too_late: whether a stage was started again alone, and the others do not need it any more.
    """

    time_ns: int
    rank: int
    where: str
    step: int
    primary: bool
    user: bool
    message: str
    trace: str
    damaged: bool = False
    hint: str = ""
    too_late: bool = False

    @property
    def may_restart(self) -> bool:
        """Whether the same stage, started again alone, may succeed."""
        return self.primary and not (self.user or self.damaged or self.too_late)

    def describe(self, log: Path, checkpoints: bool) -> str:
        """The full report: cause, what to do, and path of the log.

        Args:
            checkpoints: whether the run writes checkpoints.
        """
        if self.damaged:
            return f"{self.message}\nlog: {log}"
        when = f"at step {self.step}" if self.step else "before the first step"
        body = self.message if self.user or self.hint else self.trace.rstrip()
        remedy = f"{self.hint}\n" if self.hint else ""
        report = (
            f"{self.where} failed {when}: {self.message}\n{remedy}{advice(checkpoints)}\nlog: {log}"
        )
        return f"{body}\n{report}" if body else report

    def line(self) -> str:
        """The report of a process that stopped because another process failed."""
        return f"{self.where} stopped at step {self.step}: {self.message}"


def advice(checkpoints: bool) -> str:
    """How to continue after a failure."""
    if checkpoints:
        return "the same command with resume=auto continues from the last complete checkpoint"
    return (
        "to train again, give another run_dir, or the same run_dir with resume=auto; with "
        "checkpoint.every=STEPS a run can continue after a failure"
    )


def record(error: BaseException, rank: int, where: str, step: int) -> Failure:
    """The failure of the calling process."""
    has_text = isinstance(error, UserError | DamagedError | StorageError)
    # The place where a process waits for a lost loading process explains nothing.
    is_whole = isinstance(error, LoadingError) and error.__cause__ is None
    return Failure(
        time_ns=time.time_ns(),
        rank=rank,
        where=where,
        step=step,
        primary=not isinstance(error, PeerLostError),
        user=isinstance(error, UserError),
        message=f"{error}" if has_text else f"{type(error).__name__}: {error}",
        trace="" if is_whole else "".join(traceback.format_exception(error)),
        damaged=isinstance(error, DamagedError),
        hint=error.hint if isinstance(error, StorageError) else "",
        too_late=isinstance(error, RejoinError),
    )


def write(failure: Failure, run_dir: RunDir) -> bool:
    """Writes the record, unless the run directory was removed or cannot be written to.

    Returns:
        Whether the record was written. If not, only `read_own` in this process returns it.
    """
    if run_dir.logs.is_dir() and try_write_json(run_dir.failure(failure.rank), asdict(failure)):
        return True
    _unwritten[failure.rank] = failure
    return False


def read(run_dir: RunDir) -> list[Failure]:
    """All records of a run, in the order of `in_order`."""
    files = run_dir.logs.glob("failure_*.json")
    return in_order([Failure(**json.loads(file.read_text())) for file in files])


def read_own(run_dir: RunDir, rank: int) -> Failure:
    """The record of `rank`, which this process has passed to `write`."""
    if rank in _unwritten:
        return _unwritten[rank]
    return Failure(**json.loads(run_dir.failure(rank).read_text()))


def in_order(failures: Sequence[Failure]) -> list[Failure]:
    """Primary records before secondary ones, then by time."""
    return sorted(failures, key=lambda failure: (not failure.primary, failure.time_ns))


def explain(
    ends: Mapping[int, str], records: Sequence[Failure], plan: RunPlan, run_dir: RunDir
) -> Exception:
    """The error of a run on this machine: the earliest cause, not the first process that exited.

    Args:
        ends: rank -> how the process has ended, of the failed processes.
        records: the failure records of the processes, in the order of `in_order`.
    """
    checkpoints = plan.config.checkpoint.every > 0
    reported = {record.rank for record in records}
    silent = [(rank, end) for rank, end in ends.items() if rank not in reported]
    if records and records[0].primary:
        first = records[0]
        if first.user and first.step == 0:
            return UserError(first.message)
        error = RunFailedError(first.describe(run_dir.log(first.rank), checkpoints))
        # A mistake of the user, a loss that is not finite, or no intact checkpoint.
        error.repeats = first.user or first.damaged
        return error
    if silent:
        rank, end = silent[0]
        text = f"{plan.layout.at(rank).name()} {end}"
        if records:
            text += f"; {records[0].where} noticed at step {records[0].step}"
        return RunFailedError(f"{text}\n{advice(checkpoints)}\nlog: {run_dir.log(rank)}")
    return RunFailedError(records[0].describe(run_dir.log(records[0].rank), checkpoints))


def conclude(status: str, plan: RunPlan, run_dir: RunDir) -> None:
    """Writes the summary of a run that did not finish, unless another rank has written one or the
    run directory cannot be written to."""
    if not run_dir.summary.exists():
        try_write_json(run_dir.summary, unfinished(status, plan))
