"""The most memory that this process has had, as the kernel counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """High-water mark of the resident size of this process, in bytes.

    `ru_maxrss` outlives exec: a worker would report its launcher's peak where that is higher.
    Linux' VmHWM belongs to the memory that exec makes anew.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
