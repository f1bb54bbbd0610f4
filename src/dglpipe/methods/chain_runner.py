"""The loop of synchronous methods over the batch schedule, and evaluation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.base import RunContext
from dglpipe.methods.events import Evaluation, Event, Measurement, Update
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.pipeline.exits import ExitEvaluator
from dglpipe.pipeline.inputs import Arrival, Inputs
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage


class InputsRunner:
    """Base class of runners with inputs: checks and closes the inputs."""

    inputs: Inputs

    @property
    def decoders(self) -> int | None:
        return self.inputs.workers

    def check(self) -> None:
        self.inputs.check()

    def close(self) -> None:
        self.inputs.close()

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any] | None:
        """None: weights, optimizer and loss scaler are the whole state."""
        del stages
        return None


class ChainRunner(InputsRunner):
    """The loop of synchronous methods over the batch schedule.

    A subclass implements `train`. P = K is the pipeline: one stage per process. P = 1 is the loop
    of the paper: all stages in one process. A stage passes to the next stage of the same process
    exactly the tensor that a link would carry.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.stages = context.stages
        self.step = 0
        self.done_by_stage: Mapping[int, int] = {}
        self.timer = context.timer
        self.fields = context.plan.activations()
        self.sender = context.open_sender()
        count = context.plan.layout.stages
        self.exits = ExitEvaluator(self.stages, self.fields, self.sender, count)
        replica, done = context.topology.replica, context.done
        self._items, ahead = itertools.tee(context.plan.schedule.items(replica, done))
        # A replica may have no rows in the last test batch.
        self.inputs = context.open_inputs(item for item in ahead if item.rows)
        self._evaluation = EvaluationPass(context, self.eval_mode)
        self._arriving = Kind.LOADING if context.topology.is_first else Kind.WAIT_INPUT
        mark_phases(self.stages, self.timer)

    def run(self) -> Iterator[Event]:
        """Trains and evaluates every item of the schedule, in order."""
        first = self.stages[0].index
        for item in self._items:
            if item.phase is Phase.TEST:
                yield from self._evaluation.step(item, self.inputs, self.evaluate, self.exits)
                continue
            if item.phase is Phase.PROBE:
                yield from self._measure(item)
                continue
            self.timer.lap(first, Kind.OTHER)
            self.timer.steps_to(item.step)
            arrival = self.inputs.take()
            self.timer.lap(first, self._arriving)
            self.step = item.step
            self.train(arrival)
            yield Update(
                step=item.step,
                epoch=item.epoch,
                stages=self.learners(item),
                schedule_step=item.round_step,
                rows=item.rows,
                ends_pass=item.ends_pass,
                saved=self.stages,
            )
        if self.sender is not None:
            self.sender.wait()

    def train(self, arrival: Arrival) -> None:
        """Trains the stages on one batch and sends their output to the next process."""
        raise NotImplementedError

    def evaluate(self, arrival: Arrival) -> None:
        """Evaluates the stages on one batch and sends their output to the next process."""
        self.exits.evaluate(arrival)

    def _measure(self, item: BatchItem) -> Iterator[Measurement]:
        """Adds a part of the probe batch to the measurement of every stage; yields after the last
        part."""
        first = self.stages[0].index
        self.timer.lap(first, Kind.OTHER)
        arrival = self.inputs.take()
        batch = arrival.batch
        self.eval_mode(True)
        for stage in self.stages:
            stage.probe.add_inputs(batch)
            if stage.index in self.fields:
                batch = self.fields[stage.index].normalise(stage.infer(batch))
        self.eval_mode(False)
        if self.sender is not None:
            self.sender.send(item, {LABELS: arrival.labels, ACTIVATIONS: batch})
        if item.ends_pass:
            yield Measurement(item.step, item.epoch)
        self.timer.lap(first, Kind.EVALUATING)

    def learners(self, item: BatchItem) -> Sequence[Stage]:
        """The stages that learn from `item`."""
        del item
        return self.stages

    def eval_mode(self, on: bool) -> None:
        """Switches all stages to evaluation or back to training."""
        for stage in self.stages:
            stage.eval_mode(on)

    def report(self, stage: Stage) -> Mapping[str, Any]:
        del stage
        return {}


class EvaluationPass:
    """Keeps the stages in evaluation mode from the first to the last batch of an evaluation.

    Args:
        eval_mode: switches the stages of the process to evaluation mode or back.
    """

    def __init__(self, context: RunContext, eval_mode: Callable[[bool], None]) -> None:
        self._context = context
        self._eval_mode = eval_mode
        self.is_open = False

    def step(
        self,
        item: BatchItem,
        inputs: Inputs,
        evaluate: Callable[[Arrival], None],
        exits: ExitEvaluator,
    ) -> Iterator[Evaluation]:
        """Evaluates one batch; yields after the last batch of the evaluation."""
        context = self._context
        first = context.stages[0].index
        context.timer.lap(first, Kind.OTHER)
        if not self.is_open:
            self.is_open = True
            self._eval_mode(True)
            for stage in context.stages:
                context.group.average(stage.module.buffers())
        if item.rows:
            evaluate(inputs.take())
        if item.ends_pass:
            yield Evaluation(item.step, item.epoch, exits.ensemble_hits())
            self._eval_mode(False)
            self.is_open = False
        context.timer.lap(first, Kind.EVALUATING)

    def abandon(self, exits: ExitEvaluator) -> None:
        """Ends an evaluation that has lost batches, if one is open; its counts are dropped."""
        if self.is_open:
            exits.forget()
            self._eval_mode(False)
            self.is_open = False


def mark_phases(stages: Sequence[Stage], timer: Timer) -> None:
    """Makes `timer` record every phase of a step, if a timeline is requested."""
    if timer.is_tracing:
        for stage in stages:
            stage.mark = functools.partial(timer.lap, stage.index, Kind.BUSY)
