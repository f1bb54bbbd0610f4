"""Messages down the chain: between the stages of a process, and from and to other processes.

Each message is about a step t: about its batch, or about the weights after it. Stage j uses the
message of stage j + 1 exactly `delay` steps after step t (`Method.delay`), however fast the
processes are. So the weights do not depend on P. A message is sent only if the stage below will use
it. Checkpoints have the messages that are under way, and a resumed run sends them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.base import RunContext
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.message import Direction
from dglpipe.pipeline.stage import Stage


class DownLinks:
    """The messages down of the stages of one process. A message is one tensor.

    Args:
        sends: what a stage computes before it sends a message, in the timeline.
        takes: what it computes before it waits for one.
    """

    def __init__(self, context: RunContext, sends: str, takes: str) -> None:
        plan, method = context.plan, context.method
        self._schedule, self._timer, self._stages = plan.schedule, context.timer, context.stages
        self._done, self._sends, self._takes = context.done, sends, takes
        self.fields = {
            link: field
            for link in range(plan.layout.stages - 1)
            for field in plan.extras(link, Direction.DOWN)
        }
        """Stage -> the tensor that comes down to it."""
        delays = {j: method.delay(j, plan.layout.stages) for j in self.fields}
        self.delays = {j: delay for j, delay in delays.items() if delay is not None}
        """Stage -> steps from the step of a message to the step in which the stage uses it."""
        self._sent: dict[int, deque[tuple[int, Tensor]]] = {
            stage.index: deque(
                (step, tensor.to(context.device.torch_device))
                for step, tensor in context.restored.get(stage.index, {}).get("sent", ())
            )
            for stage in self._stages
        }
        first, top = self._stages[0].index, self._stages[-1].index
        self._to_below = context.open_sender_to_below() if first - 1 in self.fields else None
        self._from_above = None
        if top in self.fields:
            slots = self.delays[top] // self._every(top) + 1
            self._from_above = context.open_receiver_from_above(self._coming_down(top), slots)

    def resend(self) -> None:
        """Sends the messages again that were under way at the checkpoint."""
        first = self._stages[0].index
        if self._to_below is not None:
            for step, tensor in self._sent[first]:
                self._transfer(first, step, tensor)

    def is_due(self, link: int, step: int) -> bool:
        """Whether a message about `step` goes down from stage `link` + 1 to stage `link`."""
        return (
            link in self.fields
            and step >= 1
            and step % self._every(link) == 0
            and step + self.delays[link] <= self._schedule.steps
        )

    def send(self, stage: Stage, step: int, message: Tensor) -> None:
        """Sends `message` (rows, ...) about `step` to the stage below `stage`, if it is due."""
        below = stage.index - 1
        if not self.is_due(below, step):
            return
        tensor = self.fields[below].normalise(message)
        self._sent[stage.index].append((step, tensor))
        if self._to_below is not None and stage is self._stages[0]:
            self._timer.lap(stage.index, Kind.BUSY, self._sends)
            self._to_below.wait()
            self._timer.lap(stage.index, Kind.WAIT_OUTPUT)
            self._transfer(stage.index, step, tensor)

    def take(self, stage: Stage, step: int) -> Tensor:
        """The message (rows, ...) about `step` to `stage`. It is valid until the next call."""
        if stage is not self._stages[-1]:
            number, tensor = self._sent[stage.index + 1][0]
        else:
            assert self._from_above is not None
            self._timer.lap(stage.index, Kind.BUSY, self._takes)
            item, parts = self._from_above.take()
            self._timer.lap(stage.index, Kind.WAIT_INPUT)
            number, tensor = item.step, parts[self.fields[stage.index].name]
        assert number == step, "messages come down in order"
        return tensor

    def end_step(self, step: int) -> None:
        """Drops the messages that the stages below have used by the end of `step`."""
        for stage in self._stages:
            sent = self._sent[stage.index]
            while sent and sent[0][0] + self.delays[stage.index - 1] <= step:
                sent.popleft()

    def wait(self) -> None:
        """Waits until the last message has left."""
        if self._to_below is not None:
            self._to_below.wait()

    def check(self) -> None:
        """As `Receiver.check`."""
        if self._from_above is not None:
            self._from_above.check()

    def state(self, stage: Stage) -> Mapping[str, Any]:
        """The messages of `stage` that are under way, for a checkpoint."""
        return {"sent": [list(one) for one in self._sent[stage.index]]}

    def _transfer(self, stage: int, step: int, tensor: Tensor) -> None:
        assert self._to_below is not None
        name = self.fields[stage - 1].name
        self._to_below.send(self._schedule.fed(step), {name: tensor})

    def _every(self, link: int) -> int:
        return self.fields[link].every or 1

    def _coming_down(self, stage: int) -> Iterator[BatchItem]:
        """The batches of the messages that come down to `stage`, in order."""
        first = max(1, self._done - self.delays[stage] + 1)
        steps = range(first, self._schedule.steps + 1)
        return (self._schedule.fed(step) for step in steps if self.is_due(stage, step))
