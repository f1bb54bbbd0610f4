"""Reports of the stages of a process: training lines, test lines and the final entry."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dglpipe.methods.base import RunContext
from dglpipe.methods.events import Evaluation, Measurement, Update
from dglpipe.monitoring import timers
from dglpipe.monitoring.metrics import ENSEMBLE, PROBE, ProbeLine, Reporter, Sums
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.stage import Stage


class StageReporter:
    """Reports the stages of one process.

    Args:
        reporter: sends the records to the process that records the run.
        open_lines: stage -> result of `open_lines` in the checkpoint of a resumed run.
    """

    def __init__(
        self,
        context: RunContext,
        reporter: Reporter,
        open_lines: Mapping[int, dict[str, Any]] | None = None,
    ) -> None:
        self._context = context
        self._reporter = reporter
        self._timer = context.timer
        self._logged = {stage.index: 0.0 for stage in context.stages}
        self._lock = threading.Lock()
        self._evaluated = max(0, context.done - 1)
        self._held: list[tuple[int, Sequence[Mapping[str, Any]]]] = []
        by_index = {stage.index: stage for stage in context.stages}
        for j, line in (open_lines or {}).items():
            by_index[j].restore_totals(line["totals"])
            by_index[j].restore_probe(line["probe"])
            self._logged[j] -= line["seconds"]

    def begin(self, now: float) -> None:
        """Records that training begins at `now`, in seconds of the timer."""
        self._logged = {stage: now + logged for stage, logged in self._logged.items()}

    def open_lines(self, stages: Sequence[Stage]) -> dict[int, dict[str, Any]]:
        """Stage -> measurements since its last training line, for a checkpoint between two
        lines."""
        now = timers.seconds(self._timer.snapshot())
        return {
            stage.index: {
                "totals": stage.open_totals(),
                "probe": stage.probe.state(),
                "seconds": now - self._logged[stage.index],
            }
            for stage in stages
        }

    def checkpoint(self, step: int, files: Sequence[Mapping[str, Any]]) -> None:
        """Reports the files of a checkpoint, when all test lines of earlier steps have been sent.
        Several threads may call this.

        With asynchronous learning, a stage may reach `step` before it evaluates an earlier step.
        """
        with self._lock:
            self._held.append((step, files))
            self._release()

    def _release(self) -> None:
        schedule = self._context.plan.schedule
        while self._held:
            step, files = self._held[0]
            if schedule.last_evaluation_before(step) > self._evaluated:
                return
            self._reporter.checkpoint(step, files)
            del self._held[0]

    def log_train(self, update: Update) -> None:
        """Sends a training line of every stage that made the step."""
        now = timers.seconds(self._timer.snapshot())
        for stage in update.stages:
            totals = stage.totals()
            sums = Sums(
                kind="train",
                epoch=update.epoch,
                step=update.step,
                stage=stage.index,
                rows=totals.rows,
                loss=totals.loss if totals.has_loss else None,
                correct=totals.correct if stage.module.is_exit else None,
                learning_rate=stage.learning_rate(update.schedule_step),
                seconds=now - self._logged[stage.index],
            )
            self._reporter.send(sums)
            self._timer.lap(stage.index, Kind.LOGGING)
        logged = self._logged if update.is_lockstep else [one.index for one in update.stages]
        self._logged.update(dict.fromkeys(logged, now))

    def log_test(self, event: Evaluation, stages: Sequence[Stage]) -> dict[int, float]:
        """Sends a test line of every exit and of the ensemble.

        Returns:
            Stage -> test loss, summed over the rows.
        """
        rows, losses = 0, {}
        for stage in stages:
            if stage.module.is_exit:
                totals = stage.test_totals()
                rows = totals.rows
                losses[stage.index] = totals.loss
                self._send_test(event, stage.index, rows, totals.loss, totals.correct)
        if event.hits is not None:
            self._send_test(event, ENSEMBLE, rows, None, event.hits)
        with self._lock:
            self._evaluated = event.step
            self._release()
        return losses

    def log_probe(self, event: Measurement, stages: Sequence[Stage]) -> None:
        """Sends a line of the convergence of every stage."""
        for stage in stages:
            norm, drift = stage.probe.take()
            line = ProbeLine(PROBE, event.epoch, event.step, stage.index, norm, drift)
            self._reporter.send_probe(line)

    def _send_test(
        self, event: Evaluation, stage: int | str, rows: int, loss: float | None, correct: int
    ) -> None:
        self._reporter.send(Sums("test", event.epoch, event.step, stage, rows, loss, correct))

    def final(self, stage: Stage, digest: str, spent: timers.Spent | None) -> dict[str, Any]:
        """The entry of `stage` in `per_stage` of `summary.json`.

        Args:
            digest: `weights_sha256`.
            spent: time in the throughput window; None: the run is too short for a window.
        """
        plan, j = self._context.plan, stage.index
        return {
            "stage": j,
            "process": self._context.topology.process,
            "segments": list(plan.spec.segments[j]),
            "parameters": count_parameters(stage.module.segments),
            "head_parameters": sum(map(count_parameters, stage.module.auxiliary.values())),
            "flops_per_sample": plan.flops[j],
            "link_bytes_per_sample": plan.row_bytes(j),
            "down_bytes_per_sample": plan.row_bytes_down(j),
            **(timers.shares(spent, j) if spent else dict.fromkeys(timers.SHARE_NAMES)),
            "peak_memory_bytes": self._context.device.peak_memory(),
            "weights_sha256": digest,
        }

    def finish(
        self,
        samples_per_second: float | None,
        finals: Sequence[dict[str, Any]],
        decoders: int | None = None,
    ) -> None:
        """Sends the final report of the process.

        Args:
            decoders: number of processes that decode images for this process.
        """
        rate = {"samples_per_second": samples_per_second}
        self._reporter.finish({**rate, "stages": list(finals), "decoders": decoders})


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
