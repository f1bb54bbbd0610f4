"""Signals of launcher and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

STOPPING = (signal.SIGINT, signal.SIGQUIT)
"""Signals that end a run at once."""
PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that end a run after a checkpoint."""
HELD = (*STOPPING, *PREEMPTING, signal.SIGHUP)
"""Signals that reach the launcher and its workers together, from a terminal or a cluster."""

SAME_CTRL_C_S = 1.0
"""Seconds in which several SIGINT count as one: a terminal and a launcher may both send it, and a
user presses the keys more than once."""


class Interruption:
    """The handler of SIGINT outside a `SignalInbox`; remembers that the signal has arrived.

    It raises KeyboardInterrupt. Some libraries catch every exception of an import or a callback:
    the program goes on, and `check` raises it again.
    """

    def __init__(self) -> None:
        self._arrived: float | None = None

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if self._arrived is None or now - self._arrived > SAME_CTRL_C_S:
            self._arrived = now
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if the signal has arrived."""
        if self._arrived is not None:
            raise KeyboardInterrupt(signal.SIGINT.name)


INTERRUPTION = Interruption()
"""The handler of a command; in a program that calls the library it is not in use."""


class SignalInbox:
    """Collects signals in place of their default action, while the `with` block runs.

    Python handles signals in the main thread only. In another thread nothing is collected.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._receiver, False)
        os.set_blocking(self._sender, False)

    def __enter__(self) -> SignalInbox:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._handlers = {
                number: signal.signal(number, lambda *_: None) for number in self._numbers
            }
            self._wakeup = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._receiver)
        os.close(self._sender)

    def fileno(self) -> int:
        """The file descriptor that is readable when a signal has arrived."""
        return self._receiver

    def take(self) -> list[int]:
        """The signals that have arrived since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._receiver, 512) if number in self._numbers]
        return []


@contextlib.contextmanager
def held(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Holds signals back until the end of the `with` block. Processes that are started inside
    inherit the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release(numbers: Iterable[signal.Signals]) -> None:
    """Ends `held` in a process that was started inside."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def ignore(numbers: Iterable[signal.Signals]) -> None:
    """Ignores signals in this process."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def on_signals(act: Callable[[int], None], numbers: Iterable[signal.Signals]) -> None:
    """Calls `act(number)` in a separate thread for every signal.

    The main thread may wait inside a library, where Python runs no signal handlers.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    wanted = set(numbers)
    for number in wanted:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def wait() -> None:
        while True:
            number = os.read(receiver, 1)[0]
            if number in wanted:
                act(number)

    threading.Thread(target=wait, name="signals", daemon=True).start()
