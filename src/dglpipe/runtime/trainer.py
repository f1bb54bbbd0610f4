"""The training loop of one process: logs, checkpoints and throughput after every runner event."""

from __future__ import annotations

from dglpipe.methods.base import Evaluation, RunContext, Runner, Update
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring import timers
from dglpipe.monitoring.metrics import Reporter
from dglpipe.monitoring.throughput import ThroughputWindow
from dglpipe.monitoring.timers import Kind
from dglpipe.monitoring.trace import write_part
from dglpipe.pipeline.process_group import translate_peer_loss
from dglpipe.pipeline.weights import named_tensors, save, sha256
from dglpipe.runtime.checkpoint import Checkpoints
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.stage_reporter import StageReporter


class Trainer:
    """Trains the stages of one process, with any method.

    Args:
        context: plan, data, device, process group and stages of the process.
        runner: trains and evaluates the stages.
        run_dir: directory of final weights and timeline; None: neither is written.
        checkpoints: writes checkpoints; None: no checkpoints.
    """

    def __init__(
        self,
        context: RunContext,
        runner: Runner,
        run_dir: RunDir | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.context = context
        self.runner = runner
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._timer = context.timer
        reporter = Reporter(context.group.store, context.topology.rank)
        self._reporter = StageReporter(context, reporter)
        last = runner.stages[-1].index
        done = runner.done_by_stage.get(last, context.done)
        self._window = ThroughputWindow(context.plan.schedule.steps, done)

    @property
    def plan(self) -> RunPlan:
        """The plan of the run."""
        return self.context.plan

    @property
    def step(self) -> int:
        """The training step in progress; 0 before the first."""
        return self.runner.step

    def run(self) -> None:
        """Trains and evaluates to the end of the batch schedule.

        Raises:
            LinkError: a received message differs from the batch schedule.
            PeerLostError: a neighbour has exited.
        """
        with translate_peer_loss():
            # Building the network and decoding images are not part of a step.
            self._timer.lap(self.runner.stages[0].index, Kind.OTHER)
            snapshot = self._timer.snapshot()
            self._window.begin(snapshot)
            self._reporter.begin(timers.seconds(snapshot))
            for event in self.runner.run():
                if isinstance(event, Evaluation):
                    self._reporter.log_test(event, self.runner.stages)
                else:
                    self._after(event)
            if self.step:
                self._window.close(self._timer.snapshot)
        self.runner.check()
        self.runner.close()

    def _after(self, update: Update) -> None:
        """Logs, saves and measures after an optimizer step."""
        self._window.add_rows(update.rows)
        if update.step % self.plan.config.log_every == 0 or update.ends_pass:
            self.runner.check()
            self._reporter.log_train(update)
        every = self.plan.config.checkpoint.every
        if self._checkpoints is not None and update.saved and every and update.step % every == 0:
            self.runner.check()
            self._checkpoints.save(update.step, update.saved, self.runner.state(update.saved))
            self._timer.lap(update.saved[0].index, Kind.LOGGING)
        if update.rows:
            self._window.after_step(update.step, self._timer.snapshot)

    def finish(self) -> None:
        """Saves the final weights and sends the final report of the process."""
        finals = []
        for stage in self.runner.stages:
            tensors = named_tensors(stage.module)
            if self._run_dir is not None and self.context.topology.replica == 0:
                save(self._run_dir.final(stage.index), tensors)
            entry = self._reporter.final(stage, sha256(tensors), self._window.spent())
            finals.append({**entry, **self.runner.report(stage)})
        topology = self.context.topology
        if self.plan.config.timeline and self._run_dir is not None:
            part = self._run_dir.timeline_part(topology.rank)
            write_part(part, topology.rank, topology.name(), self._timer.spans())
        self._reporter.finish(self._window.rate(), finals)
