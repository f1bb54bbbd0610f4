"""The loop of methods whose stages also send messages down the chain.

Step t of the stages of a process, in two passes:

    ascend    each stage runs batch t and sends its output up
    descend   each stage uses the message from above about batch t - delay, if there is one

A stage sends a message down about every batch, in either pass. It is used exactly `delay` steps
after the stage below has run the batch; see `dglpipe.methods.down_links`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dglpipe.config import Config
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.dgl import DglRunner
from dglpipe.methods.down_links import DownLinks
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
    """Runs the two passes of every step.

    A subclass implements `ascend` and `descend`.
    """

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._count = context.plan.layout.stages
        self._down = DownLinks(context, "backward", "forward")
        self.kept: dict[int, deque[Entry]] = {}
        for stage in self.stages:
            state = context.restored.get(stage.index, {})
            self.kept[stage.index] = deque(self._entry(*one) for one in state.get("kept", ()))

    def _entry(self, step: int, tensors: Mapping[str, Any]) -> Entry:
        """An entry of a checkpoint, on the device of the process."""
        device = self.context.device.torch_device
        return Entry(step, tree_map_only(Tensor, lambda one: one.to(device), dict(tensors)))

    def ascend(self, stage: Stage, arrival: Arrival, emit: Emit | None) -> None:
        """Runs a batch through `stage` and passes its output to `emit`."""
        raise NotImplementedError

    def descend(self, stage: Stage, step: int) -> None:
        """Uses the message about batch `step` - delay, if there is one."""
        raise NotImplementedError

    def run(self) -> Iterator[Event]:
        """As `ChainRunner.run`; a resumed run first sends the messages that were under way."""
        self._down.resend()
        yield from super().run()
        self._down.wait()

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
        self._down.end_step(item.step)

    def is_last(self, stage: Stage) -> bool:
        """Whether `stage` is the last of the chain, which learns from the labels."""
        return stage.index == self._count - 1

    def delay(self, stage: Stage) -> int:
        """`Method.delay`; 0 for the last stage."""
        return self._down.delays.get(stage.index, 0)

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
        self._down.send(stage, step, gradient)

    def take_down(self, stage: Stage, step: int) -> Tensor:
        """The gradient of the output of `stage`, (rows, ...), for batch `step`. It is valid until
        the next call."""
        return self._down.take(stage, step)

    def check(self) -> None:
        super().check()
        self._down.check()

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any]:
        """What each stage keeps of earlier batches, and its messages down that are under way."""
        return {
            stage.index: {
                "kept": [list(self.saved(one)) for one in self.kept[stage.index]],
                **self._down.state(stage),
            }
            for stage in stages
        }

    def saved(self, entry: Entry) -> Entry:
        """`entry` for a checkpoint: without what can be computed again."""
        return entry
