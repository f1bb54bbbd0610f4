"""The agreement of all processes on the last step of a preempted run."""

from __future__ import annotations

import threading
import time

import pytest
from torch._C._distributed_c10d import HashStore

from dglpipe.runtime import preemption
from dglpipe.runtime.preemption import Preemption

LIMIT_S = 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(preemption, "POLL_S", 0.01)


class Chain:
    """Processes that make steps; process i + 1 makes step n after process i has made it.

    Args:
        ahead: most steps that a process is ahead of the next.
        asked_at: the step of process 0 in which the run is asked to end; None: never.
    """

    def __init__(self, processes, steps, ahead=2, asked_at=None):
        self.store, self.steps, self.asked_at = HashStore(), steps, asked_at
        self.room = [threading.Semaphore(ahead) for _ in range(processes)]
        self.ready = [threading.Semaphore(0) for _ in range(processes)]
        self.ends = [None] * processes
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(processes)]

    def __call__(self):
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), f"a process hangs; the others ended at {self.ends}"
        return self.ends

    def _run(self, i):
        own = Preemption(self.store, i, len(self.ends), 0)
        for step in range(1, self.steps + 1):
            if i:
                self.ready[i].acquire()
            if i + 1 < len(self.ends):
                self.room[i].acquire()
                self.ready[i + 1].release()
            if i == 0 and step == self.asked_at:
                preemption.request(self.store)
            time.sleep(0.005 if step % 7 else 0.03)
            if i:
                self.room[i - 1].release()
            if own.passed(step):
                self.ends[i] = step
                return


@pytest.mark.parametrize(("processes", "asked_at"), [(1, 5), (2, 1), (3, 7), (4, 20)])
def test_all_processes_stop_after_the_same_step(processes, asked_at):
    (last,) = set(Chain(processes, 60, asked_at=asked_at)())
    assert last is not None
    assert asked_at <= last <= asked_at + 20


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_run_that_is_over_ends_as_usual(is_closed):
    """The request comes when process 0 has made its last step."""
    store = HashStore()
    first, second = (Preemption(store, rank, 2, 0) for rank in range(2))
    for step in (1, 2, 3):
        assert not first.passed(step)
    if is_closed:
        first.close()
    preemption.request(store)
    assert not any(second.passed(step) for step in (1, 2, 3))


def test_without_a_request_nobody_stops():
    assert Chain(2, 20)() == [None, None]


def test_a_resumed_run_can_stop_after_its_first_step():
    store = HashStore()
    preemption.request(store)
    own = Preemption(store, 0, 1, done=40)
    time.sleep(0.2)
    assert own.passed(41)


def test_all_parts_are_saved_when_every_process_has_said_so():
    store = HashStore()
    first, second = (Preemption(store, rank, 2, 0) for rank in range(2))
    first.saved()
    assert not first.all_saved()
    second.saved()
    assert first.all_saved()


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_process_that_has_finished_leaves_no_thread(is_asked):
    """A thread inside the store would abort the process at its exit."""
    before = threading.active_count()
    store = HashStore()
    own = Preemption(store, 0, 2, 0)
    assert threading.active_count() == before + 1
    if is_asked:  # and the other process has finished as well
        preemption.request(store)
    own.close()
    assert threading.active_count() == before


def test_a_stage_that_is_started_again_reaches_the_step_that_it_has_named():
    store = HashStore()
    preemption.request(store)
    store.set(f"{preemption.REQUEST}/step/0", "9")
    own = Preemption(store, 0, 1, 4)
    assert own._known.wait(LIMIT_S)
    assert [step for step in range(5, 12) if own.passed(step)] == [9, 10, 11]
    own.close()
