"""Worker processes under their supervisor; the workers do nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest

from dglpipe.runtime import supervisor
from dglpipe.runtime.signals import HELD, SignalInbox
from dglpipe.runtime.supervisor import Supervisor, Worker, exit_text


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(supervisor, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(supervisor, "GRACE_S", 0.3)


def entry(rank, report, behave):
    signal.set_wakeup_fd(-1)
    behave(rank, report)


def run(behave, count=3):
    workers = Supervisor(count, entry, (behave,))
    try:
        with SignalInbox(HELD) as inbox:
            ends = [item for item in workers.wait(inbox) if item is not None]
    finally:
        workers.end()
    assert sorted(worker.rank for worker in ends if not worker.was_ended) == sorted(
        worker.rank for worker in workers.workers if not worker.was_ended
    )
    return workers.workers


def succeed(rank, report):
    report({"done": {"rank": rank}})
    os._exit(0)


def test_workers_that_are_done():
    workers = run(succeed)
    assert [worker.outcome for worker in workers] == [{"done": {"rank": j}} for j in range(3)]
    assert not any(worker.has_failed for worker in workers)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: os._exit(0), 0),
        (lambda: os._exit(3), 3),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9),
    ],
)
def test_a_worker_that_ends_early_has_failed_and_ends_the_others(end, code):
    def behave(rank, report):
        if rank == 1:
            end()
        time.sleep(60)

    began = time.monotonic()
    workers = run(behave)
    assert time.monotonic() - began < 30
    assert [worker.has_failed for worker in workers] == [False, True, False]
    assert [worker.was_ended for worker in workers] == [True, False, True]
    assert workers[1].exit_code == code


def test_others_may_report_before_they_are_ended():
    def behave(rank, report):
        report({"failure": {"rank": rank}})
        if rank:
            time.sleep(0.05)
        os._exit(1)

    assert [worker.outcome for worker in run(behave, 2)] == [
        {"failure": {"rank": j}} for j in (0, 1)
    ]


def test_a_stopped_worker_is_ended():
    def behave(rank, report):
        if rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(1)

    assert [worker.has_failed for worker in run(behave, 2)] == [True, False]


def test_signals_arrive_while_workers_run():
    def behave(rank, report):
        time.sleep(60)

    workers = Supervisor(1, entry, (behave,))
    with SignalInbox(HELD) as inbox:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        arriving = filter(None, workers.wait(inbox))
        assert [next(arriving), next(arriving)] == [signal.SIGUSR1, signal.SIGTERM]
        workers.end()
    assert workers.workers[0].was_ended


def test_a_failed_start_leaves_no_process(monkeypatch):
    started = []
    start = Supervisor._start

    def start_two(self, rank, *rest):
        if rank == 2:
            raise OSError("no more processes")
        started.append(start(self, rank, *rest))
        return started[-1]

    monkeypatch.setattr(Supervisor, "_start", start_two)
    with pytest.raises(OSError, match="no more processes"):
        Supervisor(3, entry, (succeed,))
    assert len(started) == 2
    assert not any(worker.process.is_alive() for worker in started)


def test_a_worker_that_is_started_again_replaces_the_one_that_failed():
    def behave(rank, report, attempt=1):
        if rank == 1 and attempt == 1:
            os._exit(3)
        time.sleep(0.5)  # longer than the others have after a failure
        succeed(rank, report)

    workers = Supervisor(2, entry, (behave,))
    try:
        with SignalInbox(HELD) as inbox:
            for item in workers.wait(inbox):
                if isinstance(item, Worker) and item.has_failed:
                    workers.restart(item.rank, (lambda *two: behave(*two, attempt=2),))
    finally:
        workers.end()
    assert [worker.outcome for worker in workers.workers] == [{"done": {"rank": j}} for j in (0, 1)]
    assert not any(worker.was_ended for worker in workers.workers)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL"),
        (128 + signal.SIGTERM, "was ended by SIGTERM"),
        (0, "exited with status 0 before the end of the run"),
        (7, "exited with status 7 before the end of the run"),
    ],
)
def test_the_end_of_a_process_in_words(code, text):
    assert exit_text(code) == text


def test_signals_keep_their_action_afterwards():
    before = [signal.getsignal(number) for number in HELD]
    with SignalInbox(HELD):
        assert [signal.getsignal(number) for number in HELD] != before
    assert [signal.getsignal(number) for number in HELD] == before
    assert sys.platform != "linux" or signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
