"""What ends a process from outside: its parent is gone, or a signal asks it to terminate."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def watch_parent(seconds: float = 1.0) -> None:
    """Looks every `seconds` whether the parent is still the same; if not, exits at once."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def on_sigterm(act: Callable[[], None]) -> None:
    """Calls `act` in a thread of its own when SIGTERM comes, then ends the process.

    The main thread may be waiting inside a library, where no handler of Python runs.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(receiver, 1)[0] != signal.SIGTERM:
            pass
        try:
            act()
        finally:
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
