"""Processes of this machine, from /proc."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Running(NamedTuple):
    """A process that is not a zombie."""

    pid: int
    parent: int
    session: int


def running() -> Iterator[Running]:
    """All processes except zombies."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, session = file.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                yield Running(int(file.parent.name), int(parent), int(session))


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    return [process.pid for process in running() if process.parent == pid]


def descendants(pid: int) -> list[int]:
    """Children of `pid`, their children, and so on."""
    own = children(pid)
    return [*own, *(further for child in own for further in descendants(child))]


def have_ended(pids: Iterable[int], seconds: float = 10.0) -> bool:
    """Waits until all processes have ended, for at most `seconds`; returns whether they have."""
    pids, deadline = set(pids), time.monotonic() + seconds
    while alive := pids & {process.pid for process in running()}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return not alive
