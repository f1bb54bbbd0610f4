"""The life of one process of a run, from rendezvous to its last word."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from dglpipe.config import AsyncConfig, Config
from dglpipe.data import DataSource
from dglpipe.files import write_json
from dglpipe.host import keep_freed_memory
from dglpipe.methods.dgl_async.distributed import AsyncWorker
from dglpipe.methods.dgl_async.simulation import SimulatedWorker
from dglpipe.methods.dgl_async.staleness import draw_staleness
from dglpipe.monitoring.metrics import Collector, JsonLines, Sink
from dglpipe.monitoring.progress import open_progress
from dglpipe.monitoring.tensorboard import TensorBoard
from dglpipe.monitoring.trace import merge
from dglpipe.pipeline.device import Device, choose_backend, select
from dglpipe.pipeline.process_group import ProcessGroup, Store, rendezvous
from dglpipe.pipeline.topology import Layout, Topology
from dglpipe.runtime import failure
from dglpipe.runtime.closing_table import closing_table
from dglpipe.runtime.config_consistency import check_consistency
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.signals import watch_parent
from dglpipe.runtime.summary import Summary
from dglpipe.runtime.trainer import Worker

logger = logging.getLogger("dglpipe")

PEER_PAUSE_S = 2.0
"""A process that only lost its neighbour stays this long, so that whoever watches the
processes sees the one that failed by itself exit first."""


def run_process(
    config: Config,
    layout: Layout,
    run_dir: RunDir,
    store: Store | None = None,
    flops: Sequence[int] | None = None,
) -> dict[str, Any] | None:
    """Runs this process to its end, under any launcher that sets RANK and its company.

    Args:
        store: from `rendezvous`; None: to be met here.
        flops: see `Worker`.

    Returns:
        At rank 0 the summary, else None.
    """
    rank = int(os.environ["RANK"])
    topology = layout.at(rank)
    watch_parent()
    keep_freed_memory()
    _log_to_file(run_dir, topology)
    worker: list[Worker] = []
    try:
        store = store or rendezvous(config.timeout_s)
        return _run(config, topology, run_dir, store, worker, flops)
    except BaseException as error:
        step = worker[0].step if worker else 0
        story = failure.record(error, rank, topology.name(), step)
        failure.write(story, run_dir)
        logger.error("%s", story.describe(run_dir.log(rank), config.checkpoint.every > 0))
        if not story.primary:
            time.sleep(PEER_PAUSE_S)
        raise


def _run(
    config: Config,
    topology: Topology,
    run_dir: RunDir,
    store: Store,
    holder: list[Worker],
    flops: Sequence[int] | None,
) -> dict[str, Any] | None:
    device = open_device(config, topology.layout)
    source = open_images(config, _loaders(topology))
    # First of all: processes that mean different layouts would wait for each other.
    store_only = ProcessGroup.store_only(topology, store)
    check_consistency(store_only, config, source.info, device.backend)
    checked, slow = config.pipeline.checked, config.link
    group = ProcessGroup.connect(topology, device, store, config.timeout_s, checked, slow)
    _write_workers(group, run_dir)
    started = time.monotonic()
    worker = open_worker(config, source, device, group, run_dir, flops)
    holder.append(worker)
    if worker.plan.left_out and topology.rank == 0:
        logger.info(
            "the last batch of every epoch, %d rows, is left out: batch norm needs 2 a replica",
            worker.plan.left_out,
        )
    summary = Summary(config, topology.layout, device, worker.plan)
    collector = _collect(config, group, worker, run_dir, summary) if topology.rank == 0 else None
    worker.run()
    worker.finish()
    result = None
    if collector is not None:
        finals = collector.finals(config.timeout_s)
        result = summary.finished(finals, time.monotonic() - started)
        write_json(run_dir.manifest, summary.manifest(finals, source.info))
        write_json(run_dir.summary, result)
        closing_table(result, run_dir.path, worker.decoders)
        draw_staleness(result["staleness"] or [], run_dir.staleness)
        if config.timeline:
            ranks = range(topology.layout.world_size)
            parts = [run_dir.timeline_part(rank) for rank in ranks]
            merge(parts, run_dir.timeline, run_dir.timeline.with_suffix(".png"))
    group.close()
    return result


def open_worker(
    config: Config,
    source: DataSource,
    device: Device,
    group: ProcessGroup,
    run_dir: RunDir | None = None,
    flops: Sequence[int] | None = None,
) -> Worker:
    """The worker of this process, as the method wants it; for its arguments see `Worker`."""
    kind = Worker
    if isinstance(config.method, AsyncConfig):
        kind = SimulatedWorker if config.method.simulate else AsyncWorker
    return kind(config, source, device, group, run_dir, flops)


def _loaders(topology: Topology) -> int:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", topology.layout.world_size))
    return topology.loaders(int(os.environ.get("LOCAL_RANK", topology.rank)), local)


def open_device(config: Config, layout: Layout) -> Device:
    """Chooses and prepares the device of this process."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", layout.world_size))
    backend = choose_backend(config.pipeline.backend, local)
    device = select(backend, int(os.environ.get("LOCAL_RANK", "0")))
    device.prepare(layout.threads, config.deterministic)
    return device


def _collect(
    config: Config, group: ProcessGroup, worker: Worker, run_dir: RunDir, summary: Summary
) -> Collector:
    run_dir.forget_after(worker.done, worker.done_by())
    layout = group.topology.layout
    sinks: list[Sink] = [
        JsonLines(run_dir.metrics),
        TensorBoard(run_dir.tensorboard),
        open_progress(worker.plan, layout.stages),
        summary,
    ]
    return Collector(group.store, layout.world_size, layout.replicas, sinks)


def _write_workers(group: ProcessGroup, run_dir: RunDir) -> None:
    """Leaves `workers.json`: who runs what where."""
    topology = group.topology
    mine = {
        "rank": topology.rank,
        "stages": list(topology.stages),
        "replica": topology.replica,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    everyone = [json.loads(text) for text in group.exchange("workers", json.dumps(mine))]
    if topology.rank == 0:
        write_json(run_dir.workers, everyone)


def _log_to_file(run_dir: RunDir, topology: Topology) -> None:
    handler = logging.FileHandler(run_dir.log(topology.rank))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    if topology.rank == 0:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.handlers[-1].setLevel(logging.INFO)
        logger.handlers[-1].addFilter(lambda record: record.levelno < logging.ERROR)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    logger.debug("%s on %s, %s", topology.name(), socket.gethostname(), versions)
