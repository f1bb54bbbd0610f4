"""Where the time of a process goes, kind by kind and stage by stage.

A process does one thing at a time, so one running timer is enough: `lap` gives the time
since the lap before to a stage and a kind. What no lap names is left over as `other`.
"""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from time import perf_counter_ns
from typing import NamedTuple


class Kind(str, Enum):
    """What a process does. A `str`, whose hash costs a third of an `Enum`'s."""

    BUSY = "busy"
    WAIT_INPUT = "wait_input"
    WAIT_OUTPUT = "wait_output"
    LOADING = "loading"
    LOGGING = "logging"
    OTHER = "other"
    EVALUATING = "evaluating"


SHARES = (Kind.BUSY, Kind.WAIT_INPUT, Kind.WAIT_OUTPUT, Kind.LOADING, Kind.LOGGING)
SHARE_NAMES = (*(f"{kind.value}_fraction" for kind in SHARES), "other_fraction")


Spent = dict[tuple[int, Kind], int]
"""Nanoseconds by stage and kind."""


class Span(NamedTuple):
    """Something that took time."""

    stage: int
    what: str
    start: int
    """Nanoseconds since the epoch."""
    duration: int
    """Nanoseconds."""
    step: int


class Timer:
    """The timer of one process.

    Attributes:
        is_tracing: whether it wants to know every part of a step.
    """

    is_tracing = False

    def __init__(self) -> None:
        self._last = perf_counter_ns()
        self._spent: defaultdict[tuple[int, Kind], int] = defaultdict(int)

    def start(self, now: int) -> None:
        """Counts from `now` on, in nanoseconds of `perf_counter_ns`."""
        self._last = now

    def lap(self, stage: int, kind: Kind, what: str | None = None) -> None:
        """Gives the time since the last lap to `kind` of `stage`.

        Args:
            what: was done, for a timeline; None: what `kind` says.
        """
        self.book(perf_counter_ns(), stage, kind, what)

    def book(self, now: int, stage: int, kind: Kind, what: str | None) -> None:
        """As `lap`, at a time that has been read elsewhere, in nanoseconds."""
        self._spent[stage, kind] += now - self._last
        self._last = now

    def steps_to(self, step: int) -> None:
        """What follows belongs to `step`, for a timeline."""

    def spans(self) -> list[Span]:
        """For a timeline: what was kept, in order."""
        return []

    def snapshot(self) -> Spent:
        """Nanoseconds by stage and kind up to the last lap."""
        return dict(self._spent)


def between(start: Spent, end: Spent) -> Spent:
    """What was spent from one snapshot to a later one."""
    return {key: time - start.get(key, 0) for key, time in end.items()}


def seconds(spent: Spent) -> float:
    """Their sum in seconds, evaluation left out."""
    return sum(time for (_, kind), time in spent.items() if kind is not Kind.EVALUATING) / 1e9


def shares(spent: Spent, stage: int) -> dict[str, float]:
    """Shares of the time for `stage`, as `summary.json` names them.

    While a process works on another of its stages, this one waits for its turn: that counts
    as waiting for input.
    """
    whole = seconds(spent) * 1e9
    own = {kind: spent.get((stage, kind), 0) for kind in SHARES}
    own[Kind.WAIT_INPUT] += sum(
        time for (at, kind), time in spent.items() if at != stage and kind in SHARES
    )
    result = {f"{kind.value}_fraction": own[kind] / whole for kind in SHARES}
    result["other_fraction"] = 1 - sum(own.values()) / whole
    return result
