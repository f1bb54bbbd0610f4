"""Runs the processes of a run on this machine, restarts them, and reports their failure."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dglpipe.errors import PreemptedError, RunFailedError, StorageError
from dglpipe.files import try_write_json
from dglpipe.host import end_with_parent
from dglpipe.methods.run_plan import RunPlan
from dglpipe.pipeline.stores import PrefixStore, Store, host_store, join_store
from dglpipe.runtime import failure, preemption
from dglpipe.runtime.recorder import Recorder
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.signals import (
    HELD,
    INTERRUPTION,
    PREEMPTING,
    STOPPING,
    SignalInbox,
    ignore,
    on_signals,
    release,
)
from dglpipe.runtime.stage_restarts import StageRestarts, StageStart
from dglpipe.runtime.summary import unfinished
from dglpipe.runtime.supervisor import Report, Supervisor, exit_text
from dglpipe.runtime.worker import run_worker

SHOW_CURSOR = "\x1b[?25h"
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
SIGTERM_PAUSE_S = 2.0
"""Seconds in which a worker that has received SIGTERM expects a request of the launcher, which has
received the signal too if the signal is for the run."""


def launch(plan: RunPlan, run_dir: RunDir) -> dict[str, Any]:
    """Starts P x R workers and waits for them; starts them again after a failure, at most
    `max_restarts` times.

    Returns:
        The summary.

    Raises:
        RunFailedError: a process failed; the message begins with the first cause.
        PreemptedError: a signal ended the run after a checkpoint.
        UserError: a process found an error in the user's input before the first step.
        KeyboardInterrupt: the user stopped the run.
    """
    # What torchrun would set, and network interfaces that no other machine reaches.
    os.environ["OMP_NUM_THREADS"] = str(plan.layout.threads)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = LOOPBACK_INTERFACE
    status = "failed"
    with SignalInbox(HELD) as inbox:
        try:
            INTERRUPTION.check()
            result = _run(plan, run_dir, inbox)
            status = "finished"
            return result
        except PreemptedError:
            status = "preempted"
            raise
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)  # a killed worker leaves the cursor hidden
            if status not in ("finished", "preempted"):  # the recorder has written those
                try_write_json(run_dir.summary, unfinished(status, plan))


def _run(plan: RunPlan, run_dir: RunDir, inbox: SignalInbox) -> dict[str, Any]:
    """Runs attempts until one succeeds."""
    store, port = host_store()
    for number in range(plan.config.max_restarts + 1):
        try:
            return _attempt(plan, run_dir, inbox, store, port, number)
        except RunFailedError as error:
            if error.repeats or number == plan.config.max_restarts:
                raise
            sys.stderr.write(f"{error}\nrestart {number + 1} of {plan.config.max_restarts}\n")
            run_dir.forget_end()
            plan = replace(plan, config=replace(plan.config, resume="auto"))
    raise AssertionError("the last attempt returns or raises")


def _attempt(
    plan: RunPlan, run_dir: RunDir, inbox: SignalInbox, store: Store, port: int, number: int
) -> dict[str, Any]:
    """Starts all workers once and waits for their end. With on_failure=restart_stage, a worker that
    fails is started again alone."""
    prefix = f"attempt{number}"
    shared = PrefixStore(prefix, store)
    arguments = (plan, str(run_dir.path), os.getpid(), port, prefix)
    restarts = None
    with contextlib.ExitStack() as ends:
        if plan.config.on_failure == "restart_stage":
            restarts = StageRestarts(plan, run_dir, shared)
            ends.callback(restarts.recorder.stop)
        first = restarts.first if restarts is not None else None
        supervisor = Supervisor(plan.layout.world_size, _entry, (*arguments, first))
        ends.callback(supervisor.end)
        if restarts is not None:
            restarts.write_workers(supervisor.workers)
        is_preempted = False
        for event in supervisor.wait(inbox):
            if isinstance(event, int):
                if event in STOPPING or (event in PREEMPTING and is_preempted):
                    raise KeyboardInterrupt(signal.Signals(event).name)
                if event in PREEMPTING:
                    is_preempted = True
                    preemption.request(shared)
                # SIGHUP: the terminal has gone; the run goes on.
            elif restarts is not None:
                _check(restarts.recorder)
                start = restarts.next(event) if event is not None and event.has_failed else None
                if event is not None and start is not None:
                    supervisor.restart(event.rank, (*arguments, start))
                    restarts.write_workers(supervisor.workers)
        return _result(plan, run_dir, supervisor, restarts)


def _check(recorder: Recorder) -> None:
    """Raises RunFailedError if a file of the record cannot be written."""
    try:
        recorder.check()
    except StorageError as error:
        text = f"{error}\n{error.hint}\n{failure.advice(checkpoints=True)}"
        raise RunFailedError(text) from error


def _result(
    plan: RunPlan, run_dir: RunDir, supervisor: Supervisor, restarts: StageRestarts | None
) -> dict[str, Any]:
    """The summary of rank 0, or of the launcher if it records the run.

    Raises:
        RunFailedError, UserError: a worker failed.
        PreemptedError: the workers stopped after a checkpoint.
    """
    failed = [worker for worker in supervisor.workers if worker.has_failed]
    if failed:
        ends = {worker.rank: exit_text(worker.exit_code or 0) for worker in failed}
        outcomes = [worker.outcome or {} for worker in supervisor.workers]
        records = [failure.Failure(**one["failure"]) for one in outcomes if "failure" in one]
        raise failure.explain(ends, failure.in_order(records), plan, run_dir)
    outcome = supervisor.workers[0].outcome or {}
    if "preempted" in outcome:
        if restarts is not None:
            restarts.recorder.preempted()
        raise PreemptedError(outcome["preempted"])
    if restarts is not None:
        return restarts.recorder.finished()
    summary: dict[str, Any] = outcome["done"]
    return summary


def _entry(
    rank: int,
    report: Report,
    plan: RunPlan,
    path: str,
    launcher: int,
    port: int,
    prefix: str,
    start: StageStart | None,
) -> None:
    """Runs one worker. The launcher handles the signals of the run and reports failures."""
    end_with_parent(launcher)
    size = plan.layout.world_size
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        os.environ[name] = os.environ[f"LOCAL_{name}"] = str(value)
    ignore((*STOPPING, signal.SIGUSR1, signal.SIGHUP))
    store = join_store(port, plan.config.timeout_s)
    asked = PrefixStore(prefix, store.clone())
    on_signals(lambda _: _terminated(asked), [signal.SIGTERM])
    release(HELD)
    run_dir = RunDir(Path(path))
    try:
        shared = PrefixStore(prefix, store)
        summary = run_worker(
            plan, run_dir, shared, lambda one: report({"failure": asdict(one)}), start
        )
    except PreemptedError as error:
        report({"preempted": error.step})
        os._exit(0)  # A regular exit would wait for messages that never come.
    except BaseException:
        # The failure is reported. A regular exit would wait for lost neighbours.
        os._exit(1)
    report({"done": summary})


def _terminated(store: Store) -> None:
    """Ends this worker after SIGTERM, unless the launcher has received the signal as well.

    A cluster sends SIGTERM to all processes of a job. Then the launcher asks for a checkpoint.
    """
    end = time.monotonic() + SIGTERM_PAUSE_S
    while time.monotonic() < end:
        if preemption.is_requested(store):
            return
        time.sleep(0.05)
    os._exit(128 + signal.SIGTERM)
