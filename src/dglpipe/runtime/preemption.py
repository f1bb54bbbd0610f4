"""Ends a run early, after a checkpoint that all processes write at the same step.

A request in the store asks for the end. Every process then names the first step after which it
can still stop. The largest of these numbers is the last step of the run. All processes reach it,
because no process waits for the answer before the end of the step that it has named:

    process 0 (step 8 in progress)     names 8      finishes 8, stops
    process 1 (step 6 in progress)     names 6      finishes 6, waits for the answer, ... 8, stops

The store carries the agreement, not the header of the messages: pipelines of backpropagation have
messages without a header, and reading a header would stall a CUDA stream in every step.
"""

from __future__ import annotations

import threading
from typing import Protocol

POLL_S = 0.2
"""Seconds between two looks at the store."""
REQUEST = "preempt"


class Store(Protocol):
    """The part of `torch.distributed.Store` that carries the agreement."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


def request(store: Store) -> None:
    """Asks all processes to stop after a checkpoint."""
    store.set(REQUEST, "")


def is_requested(store: Store) -> bool:
    """Whether a process or the launcher has asked for the end."""
    return store.check([REQUEST])


def has_trained(store: Store, rank: int) -> bool:
    """Whether process `rank` has trained to the end of the run."""
    return store.check([_trained(rank)])


def _trained(rank: int) -> str:
    return f"{REQUEST}/trained/{rank}"


class Preemption:
    """One process in the agreement on the last step.

    Args:
        store: a connection of its own, because a thread uses it while the process trains.
        size: number of processes.
        done: step of the checkpoint from which the run resumes.
    """

    def __init__(self, store: Store, rank: int, size: int, done: int) -> None:
        self._store = store
        self._rank = rank
        self._named = [f"{REQUEST}/step/{other}" for other in range(size)]
        self._saved = [f"{REQUEST}/saved/{other}" for other in range(size)]
        self._lock = threading.Lock()
        self._next = done + 1
        self._own: int | None = None
        self._last: int | None = None
        self._known = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preemption", daemon=True)
        self._thread.start()

    def passed(self, step: int) -> bool:
        """Whether `step`, which this process has finished, is the last step of the run.

        Waits for the other processes if `step` is the step that this process has named.
        """
        with self._lock:
            if self._own is None:
                self._next = step + 1
                return False
            if step < self._own:
                return False
        self._known.wait()
        assert self._last is not None
        return step >= self._last

    def saved(self) -> None:
        """Announces that this process has written its part of the last checkpoint."""
        self._store.set(self._saved[self._rank], "")

    def all_saved(self) -> bool:
        """Whether all processes have written their parts."""
        return self._store.check(self._saved)

    def close(self) -> None:
        """Ends the thread, after this process has trained to the end of the run. A thread inside
        the store at the exit of the process would abort it.

        The end may still be asked for: this process names a step that no process reaches, so that
        the run ends as usual.
        """
        self._stop.set()
        self._thread.join()
        self._store.set(_trained(self._rank), "")
        if self._own is None:
            self._store.set(self._named[self._rank], str(self._next))

    def _run(self) -> None:
        try:
            while not is_requested(self._store):
                if self._stop.wait(POLL_S):
                    return
            own = self._named[self._rank]
            with self._lock:
                # A stage that was started again reaches the step that it has named before.
                before = int(self._store.get(own)) if self._store.check([own]) else 0
                self._own = max(self._next, before)
            self._store.set(own, str(self._own))
            while not self._store.check(self._named):
                if self._stop.wait(POLL_S / 10):
                    return
            self._last = max(int(self._store.get(key)) for key in self._named)
            self._known.set()
        except RuntimeError:
            # The store has ended, and the run with it. The launcher ends a process that waits.
            return
