"""Memory that is freed stays with the process.

A step allocates and frees the same activations again and again. glibc hands blocks of 32 MiB and
more back to the kernel, which clears every page of the next one: a quarter of a step of `cnn6` of
width 64 at batch 128, with 64,000 page faults.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_memory() -> bool:
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
