"""The training loop of one process: logs, checkpoints and throughput after every runner event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dglpipe.methods.base import RunContext
from dglpipe.methods.events import Evaluation, Measurement, Update
from dglpipe.methods.run_plan import RunPlan
from dglpipe.methods.runner import Runner
from dglpipe.monitoring import timers
from dglpipe.monitoring.metrics import Reporter
from dglpipe.monitoring.throughput import ThroughputWindow
from dglpipe.monitoring.timers import Kind
from dglpipe.monitoring.trace import write_part
from dglpipe.pipeline.process_group import translate_peer_loss
from dglpipe.pipeline.weights import named_tensors, save, sha256
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.finite_check import FiniteCheck
from dglpipe.runtime.preemption import Preemption
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.stage_reporter import StageReporter
from dglpipe.runtime.summary import FILE

MORE, OPEN_LINES = "more", "open_lines"
"""Parts of a checkpoint: state of the runner, and measurements since the last training line."""


class Trainer:
    """Trains the stages of one process, with any method.

    Args:
        context: plan, data, device, process group and stages of the process.
        runner: trains and evaluates the stages.
        run_dir: directory of final weights and timeline; None: neither is written.
        checkpoints: writes checkpoints; None: no checkpoints.
        open_lines: see `StageReporter`.
        preemption: ends the run early, after a checkpoint; None: nothing does.
    """

    def __init__(
        self,
        context: RunContext,
        runner: Runner,
        run_dir: RunDir | None = None,
        checkpoints: Checkpoints | None = None,
        open_lines: Mapping[int, dict[str, Any]] | None = None,
        preemption: Preemption | None = None,
    ) -> None:
        self.context = context
        self.runner = runner
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._preemption = preemption
        self._has_left = False
        self._timer = context.timer
        group = context.group
        reporter = Reporter(group.store, group.topology.rank, group.generation)
        self._reporter = StageReporter(context, reporter, open_lines)
        self._checks = [checkpoints.check] if checkpoints is not None else []
        self._finite = FiniteCheck(context, runner.stages)
        self._evaluated = (0, 0)
        last = runner.stages[-1].index
        done = runner.done_by_stage.get(last, context.done)
        self._window = ThroughputWindow(context.plan.schedule.steps, done)

    @property
    def plan(self) -> RunPlan:
        """The plan of the run."""
        return self.context.plan

    @property
    def step(self) -> int:
        """The training step in progress; 0 before the first step or evaluation."""
        evaluated, trained = self._evaluated
        return max(trained, evaluated) if self.runner.step == trained else self.runner.step

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Writes the checkpoints of the process; None: no checkpoints."""
        return self._checkpoints

    def run(self, *checks: Callable[[], None]) -> int | None:
        """Trains and evaluates to the end of the batch schedule.

        Args:
            checks: called after every event of the runner; an error ends the training.

        Returns:
            None; or the step after which the run was preempted, with a checkpoint.

        Raises:
            LinkError: a received message differs from the batch schedule.
            NonFiniteError: with on_nonfinite=stop, a value is NaN or infinite.
            PeerLostError: a neighbour has exited.
        """
        with translate_peer_loss():
            # Building the network and decoding images are not part of a step.
            self._timer.lap(self.runner.stages[0].index, Kind.OTHER)
            snapshot = self._timer.snapshot()
            self._window.begin(snapshot)
            self._reporter.begin(timers.seconds(snapshot))
            for event in self.runner.run():
                for check in (*self._checks, *checks):
                    check()
                if isinstance(event, Evaluation):
                    self._evaluated = (event.step, self.runner.step)
                    losses = self._reporter.log_test(event, self.runner.stages)
                    self._finite.tests(event, losses)
                elif isinstance(event, Measurement):
                    self._reporter.log_probe(event, self.runner.stages)
                else:
                    self._after(event)
                    if self._stops_after(event):
                        return event.step
            if self.runner.step:
                self._window.close(self._timer.snapshot)
        self.runner.check()
        self.runner.close()
        self._finite.end()
        return None

    def _after(self, update: Update) -> None:
        """Logs, saves and measures after an optimizer step."""
        self._window.add_rows(update.rows)
        if update.step % self.plan.config.log_every == 0 or update.ends_pass:
            self.runner.check()
            self._reporter.log_train(update)
            self._finite.losses(update)
        every = self.plan.config.checkpoint.every
        if self._checkpoints is not None and update.saved and every and update.step % every == 0:
            self._save(update)
        if update.rows:
            self._window.after_step(update.step, self._timer.snapshot)

    def _save(self, update: Update) -> None:
        assert self._checkpoints is not None
        self.runner.check()
        self._finite.state(update)
        parts = {
            MORE: self.runner.state(update.saved) or {},
            OPEN_LINES: self._reporter.open_lines(update.saved),
        }
        self._checkpoints.save(update.step, update.saved, parts, self._reporter.checkpoint)
        self._timer.lap(update.saved[0].index, Kind.LOGGING)

    def _stops_after(self, update: Update) -> bool:
        """Whether a preempted run ends here; writes the checkpoint of its last step.

        A stage of asynchronous learning goes on until all processes have written theirs, because
        the stages above may wait for its output.
        """
        preemption = self._preemption
        if preemption is None or self._checkpoints is None:
            return False
        if not self._has_left and update.saved and preemption.passed(update.step):
            every = self.plan.config.checkpoint.every
            if not every or update.step % every:
                self._save(update)
            self._checkpoints.drain()
            preemption.saved()
            self._has_left = True
        return self._has_left and (update.is_lockstep or preemption.all_saved())

    def leave(self) -> None:
        """Sends the final report of the process of a preempted run."""
        self._reporter.finish(None, [])

    def finish(self) -> None:
        """Saves the final weights and sends the final report of the process."""
        if self._preemption is not None:
            self._preemption.close()
        if self._checkpoints is not None:
            self._checkpoints.drain()
        finals = []
        for stage in self.runner.stages:
            tensors = named_tensors(stage.module)
            file = None
            if self._run_dir is not None and self.context.topology.replica == 0:
                file = save(self._run_dir.final(stage.index), tensors).to_json()
            entry = self._reporter.final(stage, sha256(tensors), self._window.spent())
            finals.append({**entry, FILE: file, **self.runner.report(stage)})
        topology = self.context.topology
        if self.plan.config.timeline and self._run_dir is not None:
            part = self._run_dir.timeline_part(topology.rank)
            write_part(part, topology.rank, topology.name(), self._timer.spans())
        self._reporter.finish(self._window.rate(), finals, self.runner.decoders)
