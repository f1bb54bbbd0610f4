"""Worker entry point: rendezvous, training, shutdown of one process of a run."""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dglpipe.data import DataSource
from dglpipe.errors import DamagedError, PreemptedError, RejoinError, RunFailedError
from dglpipe.files import write_json
from dglpipe.host import keep_freed_memory
from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.registry import build_run_method
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring.cuda_timers import CudaTimer
from dglpipe.monitoring.timers import Timer
from dglpipe.monitoring.trace import TracingTimer
from dglpipe.partition.own_stages import build_own_stages
from dglpipe.pipeline.device import Device, select
from dglpipe.pipeline.probe import StageProbe
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Copies, RunLength, Stage
from dglpipe.pipeline.stores import Store
from dglpipe.pipeline.topology import Topology
from dglpipe.runtime import failure
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.config_consistency import check_consistency
from dglpipe.runtime.log_file import LogFile, log_storage_errors_of_threads
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.preemption import Preemption
from dglpipe.runtime.recorder import Recorder, worker_entry
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.stage_restarts import StageStart
from dglpipe.runtime.trainer import MORE, OPEN_LINES, Trainer
from dglpipe.streams import shield_streams

logger = logging.getLogger("dglpipe")


def run_worker(
    plan: RunPlan,
    run_dir: RunDir,
    store: Store,
    report: Callable[[failure.Failure], None] | None = None,
    start: StageStart | None = None,
) -> dict[str, Any] | None:
    """Runs one worker process; the launcher sets the environment variables RANK, WORLD_SIZE etc.

    Args:
        store: store of the run.
        report: receives the failure of this process; None: no receiver.
        start: how a stage begins that can be started again alone, with the recorder in the
            launcher; None: the stages end together, and rank 0 records the run.

    Returns:
        The summary at the rank that records the run; None at other ranks.

    Raises:
        PreemptedError: the run was ended by a signal, after a checkpoint.
    """
    rank = int(os.environ["RANK"])
    topology = plan.layout.at(rank)
    run = _Run(plan, topology, run_dir, start)
    try:
        shield_streams()
        keep_freed_memory()
        log = _log_to_file(run_dir, topology)
        return run.train(store, log)
    except PreemptedError:
        raise
    except BaseException as error:
        record = failure.record(error, rank, topology.name(), run.step)
        if report is not None:
            report(record)
        failure.write(record, run_dir)
        has_checkpoints = plan.config.checkpoint.every > 0
        logger.error("%s", record.describe(run_dir.log(rank), has_checkpoints))
        if not record.primary and report is None:
            time.sleep(failure.PEER_PAUSE_S)
        if isinstance(error, SystemExit):
            # With status 0, torchrun would count this worker as done.
            raise RunFailedError(record.message) from error
        raise


class _Run:
    """One process of a run, with the current step for failure records."""

    def __init__(
        self, plan: RunPlan, topology: Topology, run_dir: RunDir, start: StageStart | None
    ) -> None:
        self._start = start
        self._plan = plan
        self._topology = topology
        self._run_dir = run_dir
        self._trainer: Trainer | None = None

    @property
    def step(self) -> int:
        """The training step in progress; 0 before the first."""
        return 0 if self._trainer is None else self._trainer.step

    def train(self, store: Store, log: LogFile) -> dict[str, Any] | None:
        """Connects the process, trains, and disconnects; returns the summary at the rank that
        records the run."""
        plan, topology, run_dir = self._plan, self._topology, self._run_dir
        config = plan.config
        device = open_device(plan)
        source = open_images(config, _loaders(topology))
        # Before the links are connected: processes with different layouts would deadlock.
        store_only = ProcessGroup.store_only(topology, store)
        check_consistency(store_only, config, source.info, plan.backend)
        group = self._connect(device, store)
        started = time.monotonic()
        preempts = functools.partial(
            Preemption, store.clone(), topology.rank, topology.layout.world_size
        )
        trainer = self._trainer = open_trainer(
            plan, source, device, group, run_dir, preempts, self._start
        )
        if plan.schedule.left_out and topology.rank == 0:
            logger.info(
                "the last batch of every epoch, %d rows, is left out: "
                "batch norm needs 2 rows per replica",
                plan.schedule.left_out,
            )
        recorder = None
        if topology.rank == 0 and self._start is None:
            assert trainer.checkpoints is not None
            resumed = trainer.context.done, trainer.runner.done_by_stage
            recorder = Recorder(
                plan, run_dir, group.store, device, trainer.checkpoints, *resumed, started
            )
        if group.generation:
            logger.info("%s goes on after step %d", topology.name(), trainer.context.done)
        last = trainer.run(log.check, *([recorder.check] if recorder is not None else []))
        if last is not None:
            trainer.leave()
            if recorder is not None:
                recorder.preempted()
            if group.links is not None:
                group.links.finish()
            # A launcher may kill rank 0, which completes the checkpoint, when another rank ends.
            group.wait_for_rank_0("preempted")
            raise PreemptedError(last)
        trainer.finish()
        result = None if recorder is None else recorder.finished()
        group.close()
        return result

    def _connect(self, device: Device, store: Store) -> ProcessGroup:
        """Connects the process with its neighbours, and in most runs with all processes."""
        config, topology = self._plan.config, self._topology
        limit, checked, link = config.timeout_s, config.pipeline.checked, config.link
        if self._start is not None:
            generation = self._start.generation
            return ProcessGroup.connect_stage(
                topology, device, store, limit, generation, checked, link
            )
        plan = self._plan
        group = ProcessGroup.connect(topology, device, store, limit, checked, link, plan.sends_down)
        _write_workers(group, self._run_dir)
        return group


def open_trainer(
    plan: RunPlan,
    source: DataSource,
    device: Device,
    group: ProcessGroup,
    run_dir: RunDir | None = None,
    preempts: Callable[[int], Preemption] | None = None,
    start: StageStart | None = None,
) -> Trainer:
    """The trainer of this process, with the state of the newest complete checkpoint.

    Args:
        run_dir: directory of weights and checkpoints; None: neither is read or written.
        preempts: step of the checkpoint -> what ends the run early; None: nothing does.
        start: the checkpoint of a stage that can be started again alone; None: the newest that is
            complete.
    """
    method = build_run_method(plan.config, plan.layout.stages, plan.data)
    stages = _build_stages(plan, method, device, group)
    checkpoints, done, parts = None, 0, dict[str, dict[int, Any]]()
    if run_dir is not None:
        replica = group.topology.replica
        checkpoints = Checkpoints(run_dir.checkpoints, plan.config, plan.layout, replica)
        done = start.step if start is not None else _agree_on_checkpoint(checkpoints, group)
        file = None if start is None else start.file
        try:
            parts = checkpoints.restore(done, stages, file) if done else {}
        except DamagedError as error:
            if start is None or not start.generation:
                raise
            raise RejoinError(str(error)) from error  # older checkpoints may be intact
    timer: Timer = TracingTimer() if plan.config.timeline else Timer()
    if device.is_cuda:
        timer = CudaTimer(device.torch_device, timer)
    more = parts.get(MORE, {})
    context = RunContext(plan, method, source, device, group, timer, stages, done, more)
    preemption = None if preempts is None else preempts(done)
    return Trainer(
        context,
        method.runner(context),
        run_dir,
        checkpoints,
        parts.get(OPEN_LINES),
        preemption,
    )


def _build_stages(
    plan: RunPlan, method: Method, device: Device, group: ProcessGroup
) -> list[Stage]:
    config, topology = plan.config, group.topology
    modules = build_own_stages(config, method, plan.data, plan.spec, topology.stages)
    length = RunLength(plan.schedule.steps_per_round, plan.schedule.steps_per_epoch)
    copies = Copies(topology.replica, config.pipeline.replicas, group.replicate)
    return [
        Stage(
            j,
            modules[j],
            config.stage(j),
            replace(
                method.learning(j, config.label_smoothing),
                classes=plan.spec.classes,
                resets=config.method.reset_optimizer,
            ),
            device,
            length,
            config.seed,
            copies,
            StageProbe(config.probe.every, plan.spec.channels_at[j - 1] if j else 0),
        )
        for j in topology.stages
    ]


def _agree_on_checkpoint(checkpoints: Checkpoints, group: ProcessGroup) -> int:
    """The step of the checkpoint that rank 0 has verified and selects, so that all processes resume
    from the same step; 0 for a new run."""
    step = 0
    if group.topology.rank == 0:
        step = checkpoints.newest()
        checkpoints.drop_after(step)
    return int(group.exchange("resumed step", str(step))[0])


def open_device(plan: RunPlan) -> Device:
    """Selects and prepares the device of this process."""
    device = select(plan.backend, int(os.environ.get("LOCAL_RANK", "0")))
    device.prepare(plan.layout.threads, plan.config.deterministic)
    return device


def _loaders(topology: Topology) -> int:
    """Number of processes on this machine that run stage 0."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", topology.layout.world_size))
    return topology.loaders(int(os.environ.get("LOCAL_RANK", topology.rank)), local)


def _write_workers(group: ProcessGroup, run_dir: RunDir) -> None:
    """Writes `workers.json`: rank, stages, replica, process ID and host of every process."""
    own = worker_entry(group.topology, os.getpid())
    workers = [json.loads(text) for text in group.exchange("workers", json.dumps(own))]
    if group.topology.rank == 0:
        write_json(run_dir.workers, workers)


def _log_to_file(run_dir: RunDir, topology: Topology) -> LogFile:
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    handler = LogFile(run_dir.log(topology.rank))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    if topology.rank == 0:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.handlers[-1].setLevel(logging.INFO)
        logger.handlers[-1].addFilter(lambda record: record.levelno < logging.ERROR)
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    logger.debug("%s on %s, %s", topology.name(), socket.gethostname(), versions)
    log_storage_errors_of_threads()
    return handler
