"""Base class of the simulated and the distributed runner of asynchronous learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.base import RunContext
from dglpipe.methods.chain_runner import EvaluationPass, InputsRunner, mark_phases
from dglpipe.methods.dgl_async.storage import Batch
from dglpipe.methods.dgl_async.updates import StageUpdates
from dglpipe.methods.emission import Emission
from dglpipe.methods.events import Evaluation, Update
from dglpipe.pipeline.exits import ExitEvaluator, Sending
from dglpipe.pipeline.stage import Stage


class AsyncRunner(InputsRunner):
    """A runner whose stages have separate update counts.

    Args:
        sender: the link to the next process; None: no next process.
        done_by_stage: stage -> updates before the run was resumed.
    """

    def __init__(
        self,
        context: RunContext,
        settings: AsyncConfig,
        sender: Sending | None,
        done_by_stage: Mapping[int, int],
    ) -> None:
        self.context = context
        self.settings = settings
        self.stages = context.stages
        self.step = 0
        self.done_by_stage = done_by_stage
        self.timer = context.timer
        self.schedule = context.plan.schedule
        self.fields = context.plan.activations()
        self.exits = ExitEvaluator(self.stages, self.fields, sender, context.plan.layout.stages)
        self.updates = [
            StageUpdates(
                stage,
                self.schedule.steps,
                done_by_stage.get(stage.index, context.done),
            )
            for stage in self.stages
        ]
        self.evaluation = EvaluationPass(context, self.eval_mode)
        mark_phases(self.stages, self.timer)

    def evaluate(self, item: BatchItem) -> Iterator[Evaluation]:
        """Evaluates one test batch; yields after the last batch of an evaluation."""
        return self.evaluation.step(item, self.inputs, self.exits.evaluate, self.exits)

    def eval_mode(self, on: bool) -> None:
        """Switches all stages to evaluation mode, or back; see `StageUpdates.eval_mode`."""
        for one in self.updates:
            one.eval_mode(on)

    def update(self, made: StageUpdates, rows: int, saved: Sequence[Stage]) -> Update:
        """The event of the latest update in `made`.

        Args:
            rows: rows of the batch.
            saved: the stages to save if a checkpoint is due.
        """
        step = made.count
        return Update(
            step=step,
            epoch=self.schedule.fed(step).epoch,
            stages=[made.stage],
            schedule_step=step,
            rows=rows if made is self.updates[-1] else 0,
            ends_pass=self.schedule.ends_epoch(step),
            saved=saved,
            is_lockstep=False,
        )

    def extras(self, stage: int, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """The extra tensors of the message that `stage` sends for `batch`."""
        emission = Emission(stage, batch.features, features.detach(), batch.labels, batch.extras)
        return self.context.extras(emission)

    def report(self, stage: Stage) -> Mapping[str, Any]:
        """The entry of `stage` in `staleness` of `summary.json`."""
        return {"staleness": self.staleness(stage)}

    def staleness(self, stage: Stage) -> dict[str, Any]:
        """Statistics of the batches that `stage` read from its buffer."""
        raise NotImplementedError
