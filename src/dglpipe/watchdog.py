"""Ends a process whose parent is gone, so that a killed launcher leaves nobody behind."""

from __future__ import annotations

import os
import threading
import time


def watch_parent(seconds: float = 1.0) -> None:
    """Looks every `seconds` whether the parent is still the same; if not, exits at once."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
