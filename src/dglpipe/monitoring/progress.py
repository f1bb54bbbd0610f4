"""Progress display: loss and accuracy of every stage during a run."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.monitoring.metrics import AnyLine, Line, ProbeLine, format_value

PLAIN_SECONDS = 30.0
"""Time between two lines of a stage within an epoch."""


class Display(Protocol):
    """A sink that shows lines to the user."""

    def line(self, line: AnyLine) -> None: ...

    def close(self) -> None: ...


def open_progress(plan: BatchSchedule, stages: int) -> Display:
    """A live table if standard error is a terminal, else plain lines."""
    console = Console(stderr=True)
    return LiveProgress(plan, stages, console) if console.is_terminal else PlainProgress(plan)


class PlainProgress:
    """Prints one line per stage to standard error at the end of each epoch.

    In long epochs, also prints a line every `PLAIN_SECONDS`.
    """

    def __init__(self, plan: BatchSchedule) -> None:
        self._plan = plan
        self._printed: dict[int | str, float] = {}

    def line(self, line: AnyLine) -> None:
        if isinstance(line, ProbeLine):
            return
        ends_epoch = self._plan.ends_epoch(line.step)
        now = time.monotonic()
        if not ends_epoch and now - self._printed.setdefault(line.stage, now) < PLAIN_SECONDS:
            return
        self._printed[line.stage] = now
        name = line.stage if isinstance(line.stage, str) else f"stage {line.stage}"
        sys.stderr.write(
            f"epoch {line.epoch} step {line.step}/{self._plan.steps} {line.kind:5} {name}: "
            f"loss {format_value(line.loss, '.4f')} accuracy {format_value(line.accuracy, '.2%')}\n"
        )
        sys.stderr.flush()

    def close(self) -> None:
        """Does nothing: no resource is open."""


class LiveProgress:
    """A progress bar and a table of all stages, updated in place."""

    def __init__(self, plan: BatchSchedule, stages: int, console: Console) -> None:
        self._stages = stages
        self._rounds = plan.rounds
        self._last: dict[tuple[str, int | str], Line] = {}
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=plan.steps, epoch=1)
        self._live = Live(self._table(), console=console, refresh_per_second=4)
        self._live.start()

    def line(self, line: AnyLine) -> None:
        if isinstance(line, ProbeLine):
            return
        self._last[line.kind, line.stage] = line
        is_last = self._rounds > 1 or line.stage == self._stages - 1
        if line.kind == "train" and is_last:
            self._bar.update(self._task, completed=line.step, epoch=line.epoch)
        self._live.update(self._table())

    def _table(self) -> Table:
        table = Table.grid()
        table.add_row(self._bar)
        exits = Table("stage", "train loss", "train accuracy", "test accuracy", "samples/s")
        for j in range(self._stages):
            train, test = self._last.get(("train", j)), self._last.get(("test", j))
            exits.add_row(
                str(j),
                format_value(train.loss if train else None, ".4f"),
                format_value(train.accuracy if train else None, ".2%"),
                format_value(test.accuracy if test else None, ".2%"),
                format_value(train.samples_per_second if train else None, ".0f"),
            )
        table.add_row(exits)
        return table

    def close(self) -> None:
        self._live.stop()
