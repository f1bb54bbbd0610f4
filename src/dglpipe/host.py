"""The host of a process: CPU cores, memory allocator, resident memory and parent process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2)."""
STATUS = Path("/proc/self/status")
LIMITS = tuple(
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)
"""Memory limits of a container, of cgroups 2 and 1."""


def keep_freed_memory() -> bool:
    """Configures glibc's malloc to reuse freed memory instead of returning it to the kernel.

    Every training step allocates and frees the same activations. By default, glibc returns
    blocks of 32 MiB or more to the kernel, and the kernel clears each page again at the next
    allocation. For `cnn6` of width 64 at batch size 128, the 64,000 page faults take a quarter
    of the step.

    Returns:
        Whether malloc was configured. False with another C library, and when the user sets
        `MALLOC_...` or `GLIBC_TUNABLES` (see mallopt(3)).
    """
    is_set = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if is_set or mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def end_with_parent(parent: int) -> None:
    """Makes the end of the process `parent` end this process, even if `parent` is killed.

    Call as early as possible: a worker that imports torch would otherwise outlive its launcher.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is None or prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        threading.Thread(target=_watch, args=(parent,), name="watchdog", daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int, seconds: float = 1.0) -> None:
    """Where the kernel sends no signal at the end of the parent: asks every `seconds`."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os._exit(1)


def peak_resident_bytes() -> int:
    """Peak resident set size of this process, in bytes.

    Linux's VmHWM is preferred over `ru_maxrss`, because `ru_maxrss` survives exec: a worker
    would report the peak of its launcher.
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


def memory_bytes() -> int:
    """Memory of this machine in bytes, or the limit of its container, if that is lower."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no limit: the word "max"
            found.append(int(path.read_text()))
    return min(found)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
