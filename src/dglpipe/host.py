"""Memory that is freed stays with the process.

A step allocates and frees the same activations again and again. glibc hands blocks of 32 MiB and
more back to the kernel, which clears every page of the next one: a quarter of a step of `cnn6` of
width 64 at batch 128, with 64,000 page faults.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Tells malloc to keep freed memory, from now on.

    Returns:
        Whether it was told: another C library than glibc goes its own way, and what the user
        set (`MALLOC_...`, `GLIBC_TUNABLES`; see mallopt(3)) stands.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if own or mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
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


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
