"""Starts the worker processes of one machine, watches them, and ends them.

A worker is done when it has sent its outcome over its pipe and has exited. Exit status 0 alone does
not suffice, because any code in a worker can call `os._exit(0)`.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from dglpipe.runtime.signals import HELD, SignalInbox, held

CONTEXT: Any = multiprocessing.get_context("spawn")
"""Spawned workers, because forked ones share locks and threads of torch with their launcher."""
GRACE_S = 2.0
"""Seconds that the other workers have after the first failure, to notice it and to report."""

LOOK_S = 1.0
"""Maximum time in seconds between two items of `Supervisor.wait`."""

Outcome = dict[str, Any]
"""What a worker sends when it ends: `{"done": ...}`, `{"failure": ...}` or `{"preempted": ...}`."""
Report = Callable[[Outcome], None]
"""Sends the outcome of a worker to its launcher."""


@dataclass(slots=True)
class Worker:
    """One worker process.

    Attributes:
        outcome: what the worker has sent; None: nothing yet.
        exit_code: None while the worker runs; -N: killed by signal N.
        was_ended: whether the launcher ended the worker.
    """

    rank: int
    process: BaseProcess
    pipe: connection.Connection
    outcome: Outcome | None = None
    exit_code: int | None = None
    was_ended: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether the worker has ended by itself without success."""
        if self.exit_code is None or self.was_ended:
            return False
        return self.exit_code != 0 or self.outcome is None or "failure" in self.outcome

    def receive(self) -> None:
        """Reads the outcome, if one has arrived."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                self.outcome = json.loads(self.pipe.recv_bytes())


class Supervisor:
    """The workers of one attempt.

    Args:
        count: number of workers.
        entry: called in each worker process as `entry(rank, report, *arguments)`.
    """

    def __init__(self, count: int, entry: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.workers: list[Worker] = []
        self._entry = entry
        try:
            # Python starts its tracker with the first worker, and then lets SIGINT through again.
            resource_tracker.ensure_running()
            # The signals of a terminal reach the whole group, also a process that still starts.
            with held(HELD):
                for rank in range(count):
                    self.workers.append(self._start(rank, arguments))
        except BaseException:
            self.end()
            raise

    def restart(self, rank: int, arguments: tuple[Any, ...]) -> None:
        """Starts a worker again that has ended."""
        with held(HELD):
            self.workers[rank] = self._start(rank, arguments)

    def _start(self, rank: int, arguments: tuple[Any, ...]) -> Worker:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        task = (self._entry, rank, sender, arguments)
        process = CONTEXT.Process(target=_main, args=task, name=f"rank {rank}")
        process.start()
        sender.close()
        return Worker(rank, process, receiver)

    def wait(self, inbox: SignalInbox) -> Iterator[int | Worker | None]:
        """Waits until all workers have ended.

        Yields every signal that arrives, every worker that has ended, and None at least once in
        `LOOK_S` seconds. A worker may be started again before the next item. If one has failed and
        was not started again, the others have `GRACE_S` seconds. Then they are ended.
        """
        deadline: float | None = None
        while running := [worker for worker in self.workers if worker.exit_code is None]:
            sources: list[Any] = [worker.process.sentinel for worker in running]
            sources += [worker.pipe for worker in running if not worker.pipe.closed]
            limit = LOOK_S if deadline is None else max(0.0, deadline - time.monotonic())
            ready = connection.wait([*sources, inbox.fileno()], limit)
            if inbox.fileno() in ready:
                yield from inbox.take()
            for worker in running:
                if worker.pipe in ready:
                    self._read(worker)
                if worker.process.sentinel in ready:
                    self._close(worker)
                    yield worker
            yield None
            if deadline is None and any(worker.has_failed for worker in self.workers):
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() >= deadline:
                self.end()

    @staticmethod
    def _read(worker: Worker) -> None:
        try:
            worker.outcome = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            worker.pipe.close()

    @staticmethod
    def _close(worker: Worker) -> None:
        worker.process.join()
        worker.exit_code = worker.process.exitcode
        if not worker.pipe.closed:
            worker.receive()
            worker.pipe.close()

    def end(self) -> None:
        """Kills the workers that run. A stopped process ends too."""
        for worker in self.workers:
            if worker.exit_code is None and worker.process.exitcode is None:
                worker.was_ended = True
                worker.process.kill()
        for worker in self.workers:
            if worker.exit_code is None:
                self._close(worker)


def _main(
    entry: Callable[..., None],
    rank: int,
    pipe: connection.Connection,
    arguments: tuple[Any, ...],
) -> None:
    def report(outcome: Outcome) -> None:
        # The launcher may have ended.
        with contextlib.suppress(OSError):
            pipe.send_bytes(json.dumps(outcome).encode())

    entry(rank, report, *arguments)


def exit_text(code: int) -> str:
    """How a process ended, from its exit code, for messages."""
    number = -code if code < 0 else code - 128
    if code < 0 or code == 128 + signal.SIGTERM:
        return f"was ended by {signal.Signals(number).name}"
    return f"exited with status {code} before the end of the run"
