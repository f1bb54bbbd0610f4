"""Starts the processes of a run on this machine and tells how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dglpipe.config import Config, from_yaml, to_yaml
from dglpipe.errors import RunFailedError, UserError
from dglpipe.files import write_json
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import unfinished
from dglpipe.runtime.worker import run_process

SHOW_CURSOR = "\x1b[?25h"


def launch(config: Config, layout: Layout, run_dir: RunDir, flops: Sequence[int]) -> dict[str, Any]:
    """Runs P x R workers to their end.

    Args:
        flops: a sample, of every stage.

    Returns:
        The summary.

    Raises:
        RunFailedError: a process failed; the message begins with the first cause.
        UserError: a process found, before the first step, that the user made a mistake.
        KeyboardInterrupt: the user stopped the run.
    """
    _set_environment(layout)
    _quieten()
    status = "failed"
    try:
        with tempfile.TemporaryDirectory(prefix="dglpipe_") as scratch:
            start = elastic_launch(_launch_config(layout, scratch), _entry)
            arguments = to_yaml(config), layout, str(run_dir.path), flops, os.getpid()
            results: dict[int, dict[str, Any]] = start(*arguments)
        status = "finished"
        return results[0]
    except ChildFailedError as error:
        raise _explain(error, layout, run_dir, config.checkpoint.every > 0) from None
    except (SignalException, KeyboardInterrupt) as error:
        status = "interrupted"
        number = getattr(error, "sigval", signal.SIGINT)
        raise KeyboardInterrupt(signal.Signals(number).name) from None
    finally:
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)  # a worker that is killed leaves its display as it is
        if status != "finished":
            write_json(run_dir.summary, unfinished(status, config, layout))


def _launch_config(layout: Layout, scratch: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=layout.world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        # Restarting inside one job hides the first error behind refused connections.
        max_restarts=0,
        monitor_interval=0.1,
        # Workers that were forked, or served by a fork server, outlive a killed launcher.
        start_method="spawn",
        # Not SIGINT: elastic hands on the signal that it gets, and the workers ignore that one.
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
    )


def _set_environment(layout: Layout) -> None:
    """What torchrun would set, and a network interface that every machine has."""
    os.environ["OMP_NUM_THREADS"] = str(layout.threads)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _quieten() -> None:
    """Elastic logs the end of every worker as it sees it; the cause is told first, by us."""
    elastic = "distributed.elastic"
    for name in (f"{elastic}.multiprocessing.api", f"{elastic}.agent.server.api"):
        logging.getLogger(f"torch.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)


def _entry(
    config: str, layout: Layout, path: str, flops: Sequence[int], launcher: int
) -> dict[str, Any] | None:
    """One worker. The launcher alone answers to Ctrl-C and tells of failures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != launcher:
        os._exit(1)  # It was killed while this process loaded its libraries.
    try:
        return run_process(from_yaml(config), layout, RunDir(Path(path)), flops=flops)
    except Exception:
        # The story is on disk. Leaving by the front door would wait for lost neighbours.
        os._exit(1)


def _explain(
    error: ChildFailedError, layout: Layout, run_dir: RunDir, checkpoints: bool
) -> Exception:
    """The error to show: the earliest cause, not the first process that was seen to exit."""
    stories = failure.read(run_dir)
    killed = [one for one in error.failures.items() if one[1].exitcode < 0]
    if stories and stories[0].primary:
        first = stories[0]
        if first.user and first.step == 0:
            return UserError(first.message)
        return RunFailedError(first.describe(run_dir.log(first.rank), checkpoints))
    if killed:
        rank, how = killed[0]
        name = layout.at(rank).name()
        text = f"{name} was ended by {signal.Signals(-how.exitcode).name}"
        if stories:
            text += f"; {stories[0].where} noticed at step {stories[0].step}"
        return RunFailedError(f"{text}\n{failure.advice(checkpoints)}\nlog: {run_dir.log(rank)}")
    if stories:
        return RunFailedError(stories[0].describe(run_dir.log(stories[0].rank), checkpoints))
    return RunFailedError(f"a worker ended without a word: {error}\nlogs: {run_dir.logs}")
