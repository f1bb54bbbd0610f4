"""Starts a stage of asynchronous learning again while the other stages go on.

The launcher records the run, so that every stage can end and come back, stage 0 as well. A stage
resumes from its own newest checkpoint whose earlier evaluations it has reported. The other stages
need not have reached it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dglpipe.files import write_json
from dglpipe.manifest import FileEntry
from dglpipe.methods.dgl_async.distributed import withdraw_done
from dglpipe.methods.run_plan import RunPlan
from dglpipe.pipeline.device import select
from dglpipe.pipeline.stage_links import withdraw_process
from dglpipe.pipeline.stores import PrefixStore, Store
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.failure import Failure
from dglpipe.runtime.log_file import log_storage_errors_of_threads
from dglpipe.runtime.recorder import Recorder, worker_entry
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.supervisor import Worker, exit_text

STARTS = 3
"""Times that a stage may start again from one checkpoint."""


@dataclass(frozen=True, slots=True)
class StageStart:
    """How the process of a stage begins.

    Attributes:
        generation: number of processes that the stage has had before, in this attempt.
        step: step of the checkpoint from which the stage resumes; 0: none.
        file: entry of the stage's file in this checkpoint; None: as in the manifest.
    """

    generation: int
    step: int
    file: FileEntry | None = None


class StageRestarts:
    """Starts the stages of one attempt again, each alone.

    Args:
        store: store of the attempt.
    """

    def __init__(self, plan: RunPlan, run_dir: RunDir, store: Store) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._store, self._links = PrefixStore("dglpipe", store), PrefixStore("links", store)
        checkpoints = Checkpoints(run_dir.checkpoints, plan.config, plan.layout, 0)
        step = checkpoints.newest()
        checkpoints.drop_after(step)
        self.recorder = Recorder(
            plan,
            run_dir,
            self._store,
            select(plan.backend, 0),
            checkpoints,
            step,
            {},
            time.monotonic(),
        )
        self.first = StageStart(0, step)
        self._last = [self.first] * plan.layout.world_size
        self._starts: Counter[tuple[int, int]] = Counter()
        self._has_failed = False
        log_storage_errors_of_threads()

    def write_workers(self, workers: Sequence[Worker]) -> None:
        """Writes `workers.json`."""
        at = self._plan.layout.at
        entries = [worker_entry(at(one.rank), one.process.pid or 0) for one in workers]
        write_json(self._run_dir.workers, entries)

    def next(self, worker: Worker) -> StageStart | None:
        """How to start the stage of a process that has failed; None: the run has failed.

        Tells the user why the process failed.
        """
        record = (worker.outcome or {}).get("failure")
        found = Failure(**record) if record is not None else None
        if self._has_failed or (found is not None and not found.may_restart):
            self._has_failed = True
            return None
        withdraw_done(self._store, worker.rank)
        withdraw_process(self._links, worker.rank)
        saved = self.recorder.collector.renew(worker.rank)
        before = self._last[worker.rank]
        start = StageStart(before.generation + 1, before.step, before.file)
        if saved is not None:
            step, files = saved
            path = self._run_dir.checkpoints
            start = StageStart(start.generation, step, FileEntry.parse(path, files[0]))
        self._starts[worker.rank, start.step] += 1
        name = self._plan.layout.at(worker.rank).name()
        if self._starts[worker.rank, start.step] > STARTS:
            self._has_failed = True
            sys.stderr.write(f"{name} has started {STARTS} times after step {start.step}\n")
            return None
        self._last[worker.rank] = start
        self._run_dir.failure(worker.rank).unlink(missing_ok=True)
        cause = f"{name} {exit_text(worker.exit_code or 0)}"
        if found is not None:
            cause = f"{found.trace}{found.where} failed at step {found.step}: {found.message}"
        sys.stderr.write(f"{cause}\n{name} starts again alone, after step {start.step}\n")
        return start
