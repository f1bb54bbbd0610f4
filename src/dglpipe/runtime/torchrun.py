"""Runs this process as one worker of an outside launcher such as torchrun.

The launcher ends all workers when one has failed, and may start all of them again
(`--max-restarts`). Workers that are started again resume from the last complete checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from dglpipe.config import Config
from dglpipe.errors import (
    ConsistencyError,
    DamagedError,
    PreemptedError,
    RunDirError,
    RunFailedError,
    UserError,
)
from dglpipe.host import cores
from dglpipe.methods.run_plan import RunPlan
from dglpipe.pipeline.launcher_env import world_of_launcher
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stores import Store, join_attempt, rendezvous
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure, preemption
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.resume import with_cut, with_cut_of_resumed_run
from dglpipe.runtime.run import choose_run_dir, find_finished, in_run_dir, settle
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.signals import PREEMPTING, on_signals
from dglpipe.runtime.worker import run_worker

TERMINATION_PAUSE_S = 1.5
"""Maximum time in seconds until a process notices the loss of a neighbour."""
ENDING_S = 10.0
"""Maximum time in seconds from SIGTERM to the exit of a process that has trained to the end. The
launcher itself waits 30 s before SIGKILL."""
KEY = "dglpipe/run_dir"
PREEMPTED = 75
"""Exit status of a worker of a preempted run; torchrun makes 1 of it."""


def train_under_launcher(config: Config) -> None:
    """Runs this process as one worker.

    Args:
        config: the configuration; not modified.
    """
    world = world_of_launcher()
    assert world is not None
    rank, size, local = world
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        config = replace(config, resume="auto")
    layout = plan_layout(config.pipeline, config.method, cores(), size, local)
    if rank:
        _follow(config, layout, rank, local)
    else:
        _lead(config, layout, local)


def _lead(config: Config, layout: Layout, local: int) -> None:
    """Rank 0: chooses cut and run directory for all ranks, because measurements differ."""
    plan = make_plan(with_cut_of_resumed_run(config, layout), layout, local)
    launched = rendezvous(config.timeout_s)
    store = join_attempt(launched, 0, layout.world_size, config.timeout_s)
    group = ProcessGroup.store_only(layout.at(0), store)
    run_dir = choose_run_dir(config)
    if config.run_dir is None:  # a restart uses the directory of the first attempt
        run_dir = RunDir(Path(launched.compare_set(KEY, "", os.fspath(run_dir.path)).decode()))
    is_new = run_dir.status() is None
    try:
        if find_finished(plan, run_dir) is not None:
            store.set(KEY, json.dumps({"finished": True}))
            group.wait_for_departure("run_dir")
            return
        lock = run_dir.claim(config.resume)
        plan = settle(plan, run_dir)
    except UserError as error:
        store.set(KEY, json.dumps({"error": str(error)}))
        group.wait_for_departure("run_dir")
        raise
    pipeline = plan.config.pipeline
    choice = {
        "path": os.fspath(run_dir.path),
        "split": pipeline.split,
        "times": pipeline.times,
    }
    store.set(KEY, json.dumps(choice))
    with lock:
        _run_worker(plan, run_dir, store, is_new)


def _follow(config: Config, layout: Layout, rank: int, local: int) -> None:
    """Other ranks: check the configuration, then receive cut and run directory from rank 0."""
    by_flops = replace(config, pipeline=replace(config.pipeline, cost="flops"))
    plan = make_plan(by_flops, layout, local)
    store = join_attempt(rendezvous(config.timeout_s), rank, layout.world_size, config.timeout_s)
    group = ProcessGroup.store_only(layout.at(rank), store)
    choice = json.loads(store.get(KEY))
    group.wait_for_departure("run_dir")
    if "error" in choice:
        raise RunDirError(choice["error"])
    if "finished" in choice:
        return
    chosen = with_cut(config, choice["split"], choice["times"])
    if choice["split"] == plan.config.pipeline.split:
        pipeline = replace(plan.config.pipeline, cost=config.pipeline.cost, times=choice["times"])
        plan = replace(plan, config=replace(plan.config, pipeline=pipeline))
    else:
        plan = make_plan(chosen, layout, local)
    run_dir = RunDir(Path(choice["path"]))
    _run_worker(in_run_dir(plan, run_dir), run_dir, store, is_new=False)


def _run_worker(plan: RunPlan, run_dir: RunDir, store: Store, is_new: bool) -> None:
    """Runs the worker and reports its failure, which torchrun does not do.

    Args:
        is_new: whether this process created the run directory, and so removes the directory if an
            error in the user's input is found before the first step.
    """
    rank = int(os.environ["RANK"])
    has_checkpoints = plan.config.checkpoint.every > 0
    asked = store.clone()
    on_signals(lambda number: _signalled(number, plan, run_dir, rank, asked), PREEMPTING)
    try:
        run_worker(plan, run_dir, store)
    except PreemptedError as error:
        sys.stderr.write(f"{plan.layout.at(rank).name()}: {error}\n")
        sys.stderr.flush()
        os._exit(PREEMPTED)  # A regular exit would wait for messages that never come.
    except (UserError, ConsistencyError):
        record = failure.read_own(run_dir, rank)
        if record.step:
            failure.conclude("failed", plan, run_dir)
            text = record.describe(run_dir.log(rank), has_checkpoints)
            raise RunFailedError(text) from None
        if is_new:
            run_dir.discard()
        raise
    except DamagedError as error:
        failure.conclude("failed", plan, run_dir)
        raise RunFailedError(f"{error}\nlog: {run_dir.log(rank)}") from None
    except KeyboardInterrupt:
        failure.conclude("interrupted", plan, run_dir)
        raise
    except Exception:
        failure.conclude("failed", plan, run_dir)
        record = failure.read_own(run_dir, rank)
        text = record.line()
        if record.primary:
            text = record.describe(run_dir.log(rank), has_checkpoints)
        sys.stderr.write(f"{text}\n")
        raise


def _signalled(number: int, plan: RunPlan, run_dir: RunDir, rank: int, store: Store) -> None:
    """Acts on a signal of the launcher.

    SIGUSR1 means preemption. SIGTERM means preemption too, or that another process has failed: then
    that process, or a neighbour that has lost it, writes a failure record within a second. A
    process that has trained to the end cannot stop earlier, and no neighbour may be left that
    notices the failure. It waits a while for the end of the run.
    """
    began = time.monotonic()
    ends = number == signal.SIGTERM
    pause = TERMINATION_PAUSE_S if ends else 0
    while not failure.read(run_dir):
        waited = time.monotonic() - began
        if waited >= pause and not preemption.is_requested(store):
            preemption.request(store)
        if ends and waited >= ENDING_S and preemption.has_trained(store, rank):
            break
        time.sleep(0.05)
    failure.conclude("failed", plan, run_dir)
    if run_dir.failure(rank).exists():
        advice = failure.advice(plan.config.checkpoint.every > 0)
        line = failure.read_own(run_dir, rank).line()
        sys.stderr.write(f"{line}\n{advice}\nlog: {run_dir.log(rank)}\n")
    else:
        why = "another process has failed" if failure.read(run_dir) else "signal from the launcher"
        sys.stderr.write(f"{plan.layout.at(rank).name()} stopped: {why}\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)
