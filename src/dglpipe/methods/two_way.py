"""The loop of methods whose stages also send messages down the chain.

Step t of the stages of a process, in two passes:

    ascend    each stage runs batch t and sends its output up
    descend   each stage uses the message from above about batch t - delay, if there is one

A stage sends a message down about every batch, in either pass. The message is used exactly `delay`
steps after the stage below has run the batch (`Method.delay`), however fast the processes are. So
the weights do not depend on P. A message is sent only if the stage below will use it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dglpipe.config import Config
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule, Phase
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.dgl import DglRunner
from dglpipe.methods.events import Event
from dglpipe.monitoring.timers import Kind
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import LABELS, Direction, Field, contiguous_field
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit
from dglpipe.pipeline.topology import Layout

GRADIENT = "gradient"
"""Name of the message down: a gradient with respect to the output of the stage below."""


class TwoWay(Method):
    """A method whose stages send the gradient of their input down the chain."""

    flows_back = True
    measures = True
    learns_locally = False
    auxiliary_reads_output = True

    def messages(self, link: int, spec: PipelineSpec) -> tuple[Field, ...]:
        """Labels, activations, and the gradient, in the format of the activations. Only the last
        stage is an exit, so no weighted exits travel."""
        activations = spec.fields[link]
        gradient = Field(
            GRADIENT,
            activations.dtype,
            activations.shape,
            activations.strides,
            Direction.DOWN,
            (Phase.TRAIN,),
        )
        return contiguous_field(LABELS, torch.int64, ()), activations, gradient

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Refuses replicas and fp16."""
        if layout.replicas > 1:
            allowed = f"1 with method={self.name}"
            raise ConfigError("pipeline.replicas", layout.replicas, allowed)
        for j in range(layout.stages):
            if config.stage(j).precision.name == "fp16":
                hint = "Gradients cross the links, and each stage would scale its loss differently"
                allowed = f"fp32 or bf16 with method={self.name}"
                raise ConfigError("precision", "fp16", allowed, hint)


class Entry(NamedTuple):
    """What a stage keeps of a batch until the message about the batch has come down."""

    step: int
    tensors: Mapping[str, Any]
    """Tensors, and objects that can be computed from them again."""


class TwoWayRunner(DglRunner):
    """Runs the two passes of every step, and carries the messages down.

    A subclass implements `ascend` and `descend`.
    """

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        count = context.plan.layout.stages
        self._schedule = context.plan.schedule
        self._count = count
        self._delays = {j: context.method.delay(j, count) or 0 for j in range(count - 1)}
        self.kept: dict[int, deque[Entry]] = {}
        self._sent: dict[int, deque[tuple[int, Tensor]]] = {}
        for stage in self.stages:
            state = context.restored.get(stage.index, {})
            self.kept[stage.index] = deque(Entry(*one) for one in state.get("kept", ()))
            self._sent[stage.index] = deque((one[0], one[1]) for one in state.get("sent", ()))
        top = self.stages[-1].index
        self._to_below = context.open_sender_to_below()
        slots = self._delays.get(top, 0) + 1
        self._from_above = context.open_receiver_from_above(self._coming_down(top), slots)

    def ascend(self, stage: Stage, arrival: Arrival, emit: Emit | None) -> None:
        """Runs a batch through `stage` and passes its output to `emit`."""
        raise NotImplementedError

    def descend(self, stage: Stage, step: int) -> None:
        """Uses the message about batch `step` - delay, if there is one."""
        raise NotImplementedError

    def run(self) -> Iterator[Event]:
        """As `ChainRunner.run`; a resumed run first sends the messages that were under way."""
        first = self.stages[0].index
        if self._to_below is not None:
            for step, tensor in self._sent[first]:
                self._to_below.send(self._schedule.fed(step), {GRADIENT: tensor})
        yield from super().run()
        if self._to_below is not None:
            self._to_below.wait()

    def train(self, arrival: Arrival) -> None:
        """Both passes of one step."""
        item = arrival.item
        for stage in self.stages:
            emit = self._emit(stage, arrival)
            self.ascend(stage, arrival, emit)
            self.timer.lap(stage.index, Kind.BUSY, "forward")
            if self._next is not None:
                arrival, self._next = self._next, None
        for stage in self.stages:
            self.descend(stage, item.round_step)
            self.timer.lap(stage.index, Kind.BUSY, "step")
        for stage in self.stages:
            sent = self._sent[stage.index]
            while sent and sent[0][0] + self._delays[stage.index - 1] <= item.step:
                sent.popleft()

    def is_last(self, stage: Stage) -> bool:
        """Whether `stage` is the last of the chain, which learns from the labels."""
        return stage.index == self._count - 1

    def delay(self, stage: Stage) -> int:
        """`Method.delay`; 0 for the last stage."""
        return self._delays.get(stage.index, 0)

    def keep(self, stage: Stage, step: int, **tensors: Any) -> None:
        """Keeps `tensors` of batch `step` until `recall`."""
        self.kept[stage.index].append(Entry(step, tensors))

    def recall(self, stage: Stage, step: int) -> Entry | None:
        """What `stage` has kept of batch `step`; None for a step before the first. Drops it."""
        if step < 1:
            return None
        entry = self.kept[stage.index].popleft()
        assert entry.step == step, "batches are used in order"
        return entry

    def send_down(self, stage: Stage, step: int, gradient: Tensor) -> None:
        """Sends `gradient`, (rows, ...), of the input of `stage` for batch `step` to the stage
        below, if this stage will use it."""
        below = stage.index - 1
        if step + self._delays[below] > self._schedule.steps:
            return
        tensor = self.fields[below].normalise(gradient)
        self._sent[stage.index].append((step, tensor))
        if self._to_below is not None and stage is self.stages[0]:
            self.timer.lap(stage.index, Kind.BUSY, "backward")
            self._to_below.wait()
            self.timer.lap(stage.index, Kind.WAIT_OUTPUT)
            self._to_below.send(self._schedule.fed(step), {GRADIENT: tensor})

    def take_down(self, stage: Stage, step: int) -> Tensor:
        """The gradient of the output of `stage`, (rows, ...), for batch `step`. It is valid until
        the next call."""
        if stage is not self.stages[-1]:
            number, tensor = self._sent[stage.index + 1][0]
        else:
            assert self._from_above is not None
            self.timer.lap(stage.index, Kind.BUSY, "forward")
            item, parts = self._from_above.take()
            self.timer.lap(stage.index, Kind.WAIT_INPUT)
            number, tensor = item.step, parts[GRADIENT]
        assert number == step, "messages come down in order"
        return tensor

    def check(self) -> None:
        super().check()
        if self._from_above is not None:
            self._from_above.check()

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any]:
        """What each stage keeps of earlier batches, and its messages down that are under way."""
        return {
            stage.index: {
                "kept": [list(self.saved(one)) for one in self.kept[stage.index]],
                "sent": [list(one) for one in self._sent[stage.index]],
            }
            for stage in stages
        }

    def saved(self, entry: Entry) -> Entry:
        """`entry` for a checkpoint: without what can be computed again."""
        return entry

    def _coming_down(self, stage: int) -> Iterator[BatchItem]:
        """The batches about which messages come down to `stage`, in order."""
        delay = self._delays.get(stage, 0)
        first = max(1, self.context.done - delay + 1)
        return map(self._schedule.fed, range(first, self._schedule.steps - delay + 1))
