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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dglpipe.data import DataSource
from dglpipe.errors import PreemptedError, RunFailedError
from dglpipe.files import write_json
from dglpipe.host import keep_freed_memory
from dglpipe.manifest import write_manifest
from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.dgl_async.staleness import draw_staleness
from dglpipe.methods.registry import build_method
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring.cuda_timers import CudaTimer
from dglpipe.monitoring.metrics import Collector, JsonLines, Sink
from dglpipe.monitoring.progress import open_progress
from dglpipe.monitoring.tensorboard import TensorBoard
from dglpipe.monitoring.timers import Timer
from dglpipe.monitoring.trace import TracingTimer, merge
from dglpipe.partition.own_stages import build_own_stages
from dglpipe.pipeline.device import Device, select
from dglpipe.pipeline.process_group import ProcessGroup, Store
from dglpipe.pipeline.stage import Copies, RunLength, Stage
from dglpipe.pipeline.topology import Topology
from dglpipe.runtime import failure
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.closing_table import closing_table
from dglpipe.runtime.config_consistency import check_consistency
from dglpipe.runtime.log_file import LogFile, log_storage_errors_of_threads
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.preemption import Preemption
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import Summary, unfinished
from dglpipe.runtime.trainer import MORE, OPEN_LINES, Trainer
from dglpipe.streams import shield_streams

logger = logging.getLogger("dglpipe")


def run_worker(
    plan: RunPlan,
    run_dir: RunDir,
    store: Store,
    report: Callable[[failure.Failure], None] | None = None,
) -> dict[str, Any] | None:
    """Runs one worker process; the launcher sets the environment variables RANK, WORLD_SIZE etc.

    Args:
        store: store of the run.
        report: receives the failure of this process; None: no receiver.

    Returns:
        The summary at rank 0; None at other ranks.

    Raises:
        PreemptedError: the run was ended by a signal, after a checkpoint.
    """
    rank = int(os.environ["RANK"])
    topology = plan.layout.at(rank)
    run = _Run(plan, topology, run_dir)
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

    def __init__(self, plan: RunPlan, topology: Topology, run_dir: RunDir) -> None:
        self._plan = plan
        self._topology = topology
        self._run_dir = run_dir
        self._trainer: Trainer | None = None

    @property
    def step(self) -> int:
        """The training step in progress; 0 before the first."""
        return 0 if self._trainer is None else self._trainer.step

    def train(self, store: Store, log: LogFile) -> dict[str, Any] | None:
        """Connects the process, trains, and disconnects; returns the summary at rank 0."""
        plan, topology, run_dir = self._plan, self._topology, self._run_dir
        config = plan.config
        device = open_device(plan)
        source = open_images(config, _loaders(topology))
        # Before the links are connected: processes with different layouts would deadlock.
        store_only = ProcessGroup.store_only(topology, store)
        check_consistency(store_only, config, source.info, plan.backend)
        checked, link = config.pipeline.checked, config.link
        group = ProcessGroup.connect(topology, device, store, config.timeout_s, checked, link)
        _write_workers(group, run_dir)
        started = time.monotonic()
        preempts = functools.partial(
            Preemption, store.clone(), topology.rank, topology.layout.world_size
        )
        trainer = self._trainer = open_trainer(plan, source, device, group, run_dir, preempts)
        if plan.schedule.left_out and topology.rank == 0:
            logger.info(
                "the last batch of every epoch, %d rows, is left out: "
                "batch norm needs 2 rows per replica",
                plan.schedule.left_out,
            )
        summary = Summary(plan, device)
        collector = _collect(trainer, run_dir, summary) if topology.rank == 0 else None
        last = trainer.run(log.check, *([collector.check] if collector is not None else []))
        if last is not None:
            trainer.leave()
            if collector is not None:
                collector.finals(config.timeout_s)
                write_json(run_dir.summary, unfinished("preempted", plan))
            # A launcher may kill rank 0, which completes the checkpoint, when another rank ends.
            group.wait_for_rank_0("preempted")
            raise PreemptedError(last)
        trainer.finish()
        result = None
        if collector is not None:
            finals = collector.finals(config.timeout_s)
            result = summary.finished(finals, time.monotonic() - started)
            _write_results(plan, run_dir, summary, finals, result)
            closing_table(result, run_dir.path, trainer.runner.decoders)
        group.close()
        return result


def _write_results(
    plan: RunPlan,
    run_dir: RunDir,
    summary: Summary,
    finals: list[dict[str, Any]],
    result: dict[str, Any],
) -> None:
    """Writes the results of a finished run: manifest, pictures and summary.

    The summary comes last: it tells a later start that the run has all its results.
    """
    write_manifest(run_dir.manifest, summary.manifest(finals))
    draw_staleness(result["staleness"] or [], run_dir.staleness)
    if plan.config.timeline:
        parts = [run_dir.timeline_part(rank) for rank in range(plan.layout.world_size)]
        merge(parts, run_dir.timeline, run_dir.timeline.with_suffix(".png"))
    write_json(run_dir.summary, result)


def open_trainer(
    plan: RunPlan,
    source: DataSource,
    device: Device,
    group: ProcessGroup,
    run_dir: RunDir | None = None,
    preempts: Callable[[int], Preemption] | None = None,
) -> Trainer:
    """The trainer of this process, with the state of the newest complete checkpoint.

    Args:
        run_dir: directory of weights and checkpoints; None: neither is read or written.
        preempts: step of the checkpoint -> what ends the run early; None: nothing does.
    """
    method = build_method(plan.config.method)
    stages = _build_stages(plan, method, device, group)
    checkpoints, done, parts = None, 0, dict[str, dict[int, Any]]()
    if run_dir is not None:
        replica = group.topology.replica
        checkpoints = Checkpoints(run_dir.checkpoints, plan.config, plan.layout, replica)
        done = _agree_on_checkpoint(checkpoints, group)
        parts = checkpoints.restore(done, stages) if done else {}
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
            replace(method.learning(config.label_smoothing), classes=plan.spec.classes),
            device,
            length,
            config.seed,
            copies,
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


def _collect(trainer: Trainer, run_dir: RunDir, summary: Summary) -> Collector:
    context, plan = trainer.context, trainer.plan
    checkpoints = trainer.checkpoints
    assert checkpoints is not None
    wanted = checkpoints.lines(context.done)
    kept = run_dir.forget_after(context.done, trainer.runner.done_by_stage, wanted)
    lines = JsonLines(run_dir.metrics, kept)
    sinks: list[Sink] = [
        lines,
        TensorBoard(run_dir.tensorboard),
        open_progress(plan.schedule, plan.layout.stages),
        summary,
    ]

    def complete(step: int, files: Sequence[Mapping[str, Any]]) -> None:
        """A checkpoint counts when its lines are on the disk."""
        lines.sync()
        checkpoints.complete(step, files, lines.count)

    layout = plan.layout
    sizes = layout.world_size, layout.replicas
    return Collector(context.group.store, *sizes, sinks, complete)


def _write_workers(group: ProcessGroup, run_dir: RunDir) -> None:
    """Writes `workers.json`: rank, stages, replica, process ID and host of every process."""
    topology = group.topology
    own = {
        "rank": topology.rank,
        "stages": list(topology.stages),
        "replica": topology.replica,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    workers = [json.loads(text) for text in group.exchange("workers", json.dumps(own))]
    if topology.rank == 0:
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
