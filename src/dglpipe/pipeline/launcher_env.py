"""Environment variables that an outside launcher (torchrun) sets for its workers."""

from __future__ import annotations

import os
from typing import NamedTuple


class LauncherWorld(NamedTuple):
    """Place of this process among the workers of the launcher."""

    rank: int
    size: int
    """Number of workers on all machines."""
    local_size: int
    """Number of workers on this machine."""


def world_of_launcher() -> LauncherWorld | None:
    """The world of an outside launcher; None if no launcher started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    keys = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return LauncherWorld(*(int(os.environ[key]) for key in keys))
