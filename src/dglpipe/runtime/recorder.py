"""Records a run: lines of metrics, manifests of checkpoints, and the results at the end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dglpipe.errors import DglpipeError
from dglpipe.files import write_json
from dglpipe.manifest import write_manifest
from dglpipe.methods.dgl_async.staleness import draw_staleness
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring.convergence import draw_convergence
from dglpipe.monitoring.metrics import Collector, JsonLines, Sink
from dglpipe.monitoring.progress import open_progress
from dglpipe.monitoring.tensorboard import TensorBoard
from dglpipe.monitoring.trace import merge
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.stores import Store
from dglpipe.pipeline.topology import Topology
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.closing_table import closing_table
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import DECODERS, Summary, unfinished


class Recorder:
    """Receives the reports of all processes and writes the files of the run.

    One process of a run has a recorder: rank 0, or the launcher if stages can be started again
    alone.

    Args:
        store: the store to which the processes report.
        device: the device of the stages.
        checkpoints: completes the checkpoints.
        done: step of the checkpoint from which the run resumes; 0 for a new run.
        by_stage: stage -> step, for stages that resume after another step.
        started: start of the run in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        plan: RunPlan,
        run_dir: RunDir,
        store: Store,
        device: Device,
        checkpoints: Checkpoints,
        done: int,
        by_stage: Mapping[int, int],
        started: float,
    ) -> None:
        self._started = started
        self._plan = plan
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._summary = Summary(plan, device)
        kept = run_dir.forget_after(done, by_stage, checkpoints.lines(done))
        self._lines = JsonLines(run_dir.metrics, kept)
        sinks: list[Sink] = [
            self._lines,
            TensorBoard(run_dir.tensorboard),
            open_progress(plan.schedule, plan.layout.stages),
            self._summary,
        ]
        sizes = plan.layout.world_size, plan.layout.replicas
        self.collector = Collector(store, *sizes, sinks, self._complete)

    def _complete(self, step: int, files: Sequence[Mapping[str, Any]]) -> None:
        """A checkpoint counts when its lines are on the disk."""
        self._lines.sync()
        self._checkpoints.complete(step, files, self._lines.count)

    def check(self) -> None:
        """Raises the error of the collecting thread, if any."""
        self.collector.check()

    def stop(self) -> None:
        """Ends the record of an attempt that has failed; its failure is known already."""
        with contextlib.suppress(DglpipeError):
            self.collector.close()

    def preempted(self) -> None:
        """Ends the record of a run that a signal has ended, when all processes have reported."""
        self.collector.finals(self._plan.config.timeout_s)
        write_json(self._run_dir.summary, unfinished("preempted", self._plan))

    def finished(self) -> dict[str, Any]:
        """Writes the results, when all processes have reported: manifest, pictures and summary.

        The summary comes last: it tells a later start that the run has all its results.
        """
        plan, run_dir = self._plan, self._run_dir
        finals = self.collector.finals(plan.config.timeout_s)
        result = self._summary.finished(finals, time.monotonic() - self._started)
        write_manifest(run_dir.manifest, self._summary.manifest(finals))
        if plan.config.probe.every:
            draw_convergence(run_dir.metrics, run_dir.convergence)
        draw_staleness(result["staleness"] or [], run_dir.staleness)
        if plan.config.timeline:
            parts = [run_dir.timeline_part(rank) for rank in range(plan.layout.world_size)]
            merge(parts, run_dir.timeline, run_dir.timeline.with_suffix(".png"))
        write_json(run_dir.summary, result)
        closing_table(result, run_dir.path, finals[0][DECODERS])
        return result


def worker_entry(topology: Topology, process: int) -> dict[str, Any]:
    """The entry of a process of this machine in `workers.json`.

    Args:
        process: process ID.
    """
    return {
        "rank": topology.rank,
        "stages": list(topology.stages),
        "replica": topology.replica,
        "pid": process,
        "host": socket.gethostname(),
    }
