"""Timers: the time of a process by stage and kind of activity.

A process does one thing at a time, so one running timer suffices: `lap` assigns the time since
the previous lap to a stage and a kind. Time without a lap counts as `other`.
"""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from time import perf_counter_ns
from typing import NamedTuple


class Kind(str, Enum):
    """Kind of activity. A `str`, because hashing a plain `Enum` costs three times as much."""

    BUSY = "busy"
    WAIT_INPUT = "wait_input"
    WAIT_OUTPUT = "wait_output"
    LOADING = "loading"
    LOGGING = "logging"
    OTHER = "other"
    EVALUATING = "evaluating"


SHARES = (Kind.BUSY, Kind.WAIT_INPUT, Kind.WAIT_OUTPUT, Kind.LOADING, Kind.LOGGING)
"""Kinds with a fraction of their own in `summary.json`."""
SHARE_NAMES = (*(f"{kind.value}_fraction" for kind in SHARES), "other_fraction")


Spent = dict[tuple[int, Kind], int]
"""Time in nanoseconds by stage and kind."""


class Span(NamedTuple):
    """One timed activity."""

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
        is_tracing: whether the timer records every part of a step.
    """

    is_tracing = False

    def __init__(self) -> None:
        self._last = perf_counter_ns()
        self._spent: defaultdict[tuple[int, Kind], int] = defaultdict(int)

    def start(self, now: int) -> None:
        """Starts the first lap at `now`, in nanoseconds of `perf_counter_ns`."""
        self._last = now

    def lap(self, stage: int, kind: Kind, what: str | None = None) -> None:
        """Assigns the time since the previous lap to `kind` of `stage`.

        Args:
            what: name of the activity in a trace; None: the name of `kind`.
        """
        self.book(perf_counter_ns(), stage, kind, what)

    def book(self, now: int, stage: int, kind: Kind, what: str | None) -> None:
        """Ends a lap at `now` in nanoseconds; otherwise as `lap`."""
        self._spent[stage, kind] += now - self._last
        self._last = now

    def steps_to(self, step: int) -> None:
        """Sets the training step of the next laps, for a trace."""

    def spans(self) -> list[Span]:
        """Recorded spans in order; empty if the timer does not trace."""
        return []

    def snapshot(self) -> Spent:
        """Time by stage and kind up to the last lap."""
        return dict(self._spent)


def between(start: Spent, end: Spent) -> Spent:
    """The time from snapshot `start` to the later snapshot `end`."""
    return {key: time - start.get(key, 0) for key, time in end.items()}


def seconds(spent: Spent) -> float:
    """The total in seconds, without evaluation."""
    return sum(time for (_, kind), time in spent.items() if kind is not Kind.EVALUATING) / 1e9


def shares(spent: Spent, stage: int) -> dict[str, float]:
    """Fractions of the time by kind for `stage`, under their keys in `summary.json`.

    Time that the process spends on its other stages counts as waiting for input.
    """
    whole = seconds(spent) * 1e9
    own = {kind: spent.get((stage, kind), 0) for kind in SHARES}
    own[Kind.WAIT_INPUT] += sum(
        time for (at, kind), time in spent.items() if at != stage and kind in SHARES
    )
    result = {f"{kind.value}_fraction": own[kind] / whole for kind in SHARES}
    result["other_fraction"] = 1 - sum(own.values()) / whole
    return result
