"""Exit of a worker when its parent process has exited, and on SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def watch_parent(seconds: float = 1.0) -> None:
    """Starts a thread that exits this process when its parent has exited; polls every `seconds`."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def on_sigterm(act: Callable[[], None]) -> None:
    """Calls `act` in a separate thread on SIGTERM, then exits the process.

    The main thread may wait inside a library, where Python runs no signal handlers.
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
