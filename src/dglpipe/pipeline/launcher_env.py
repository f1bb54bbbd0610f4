"""Environment variables that an outside launcher (torchrun) sets for its workers."""

from __future__ import annotations

import os
from typing import NamedTuple

from dglpipe.errors import ConfigError

MARK = "TORCHELASTIC_RUN_ID"
"""Variable by which a worker of a launcher is recognised."""
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
PLACE = ("MASTER_ADDR", "MASTER_PORT")
_HINT = f"Unset {MARK} for a run without torchrun, or start the run with torchrun"


class LauncherWorld(NamedTuple):
    """Place of this process among the workers of the launcher."""

    rank: int
    size: int
    """Number of workers on all machines."""
    local_size: int
    """Number of workers on this machine."""


def world_of_launcher() -> LauncherWorld | None:
    """The world of an outside launcher; None if no launcher started this process.

    A process in which only `TORCHELASTIC_RUN_ID` is left over has no launcher.

    Raises:
        ConfigError: some variables of the launcher are missing, are not numbers, or do not fit
            each other.
    """
    if MARK not in os.environ or not any(key in os.environ for key in (*NUMBERS, *PLACE)):
        return None
    size = _number("WORLD_SIZE", 1, 1_000_000)
    rank = _number("RANK", 0, size - 1)
    local_size = _number("LOCAL_WORLD_SIZE", 1, size)
    _number("LOCAL_RANK", 0, local_size - 1)
    _number("MASTER_PORT", 1, 65535)
    if not os.environ.get("MASTER_ADDR"):
        raise _error("MASTER_ADDR", "the address of rank 0")
    return LauncherWorld(rank, size, local_size)


def _number(key: str, low: int, high: int) -> int:
    """The variable `key` as a number from `low` to `high`."""
    text = os.environ.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise _error(key, f"a whole number from {low} to {high} beside {MARK}")
    return int(text)


def _error(key: str, allowed: str) -> ConfigError:
    return ConfigError(key, os.environ.get(key), allowed, _HINT)
