"""Starts the processes of a run on this machine and reports their failure."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dglpipe.files import write_json
from dglpipe.methods.run_plan import RunPlan
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import unfinished
from dglpipe.runtime.worker import run_worker

SHOW_CURSOR = "\x1b[?25h"


def launch(plan: RunPlan, run_dir: RunDir) -> dict[str, Any]:
    """Starts P x R workers and waits for them.

    Returns:
        The summary.

    Raises:
        RunFailedError: a process failed; the message begins with the first cause.
        UserError: a process found an error in the user's input before the first step.
        KeyboardInterrupt: the user stopped the run.
    """
    # What torchrun would set, and a network interface that every machine has.
    os.environ["OMP_NUM_THREADS"] = str(plan.layout.threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    _quieten()
    status = "failed"
    try:
        with tempfile.TemporaryDirectory(prefix="dglpipe_") as scratch:
            start = elastic_launch(_launch_config(plan.layout, scratch), _entry)
            results: dict[int, dict[str, Any]] = start(plan, str(run_dir.path), os.getpid())
        status = "finished"
        return results[0]
    except ChildFailedError as error:
        exit_codes = {rank: one.exitcode for rank, one in error.failures.items()}
        raise failure.explain(exit_codes, plan, run_dir) from None
    except (SignalException, KeyboardInterrupt) as error:
        status = "interrupted"
        number = getattr(error, "sigval", signal.SIGINT)
        raise KeyboardInterrupt(signal.Signals(number).name) from None
    finally:
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)  # a killed worker leaves the cursor hidden
        if status != "finished":
            write_json(run_dir.summary, unfinished(status, plan))


def _launch_config(layout: Layout, scratch: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=layout.world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        # A restart would hide the first error among refused connections.
        max_restarts=0,
        monitor_interval=0.1,
        # With fork or forkserver, workers outlive a killed launcher.
        start_method="spawn",
        # Not SIGINT: elastic forwards its signals, and the workers ignore SIGINT.
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
    )


def _quieten() -> None:
    """Silences torch elastic, which logs the exit of every worker. The launcher reports the
    cause."""
    elastic = "distributed.elastic"
    for name in (f"{elastic}.multiprocessing.api", f"{elastic}.agent.server.api"):
        logging.getLogger(f"torch.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)


def _entry(plan: RunPlan, path: str, launcher: int) -> dict[str, Any] | None:
    """Runs one worker. Only the launcher handles Ctrl-C and reports failures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != launcher:
        os._exit(1)  # The launcher was killed while this process imported its libraries.
    try:
        return run_worker(plan, RunDir(Path(path)))
    except Exception:
        # The failure record is on disk. A regular exit would wait for lost neighbours.
        os._exit(1)
