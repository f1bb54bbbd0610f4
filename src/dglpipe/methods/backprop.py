"""Backprop through stages on several processes: the peer that local learning is measured by.

The schedules are those of `torch.distributed.pipelining`, which carries activations forward
and gradients back. A batch goes through in equal micro-batches, the gradient is that of its
mean loss. Labels travel from process to process over the links. Batch norm sees micro-batches:
its statistics are those of B / m rows, and it counts m updates a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup as TorchGroup
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import _PipelineSchedule as Schedule

from dglpipe.config import BackpropConfig, Config
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.errors import ConfigError
from dglpipe.methods.dgl import Chain
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.link import Sender
from dglpipe.pipeline.message import LABELS, Field
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Stage, admit
from dglpipe.pipeline.topology import Layout

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
}


class Pipelined(Chain):
    """The stages of one process, whose gradients come from the process above.

    Args:
        stages: of this process, rising.
        sender: of the labels, to the next process; None at the last.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        spec: PipelineSpec,
        config: Config,
        sender: Sender | None,
        timer: Timer,
        group: ProcessGroup,
        device: Device,
    ) -> None:
        assert isinstance(config.method, BackpropConfig)
        count = group.topology.layout.stages
        super().__init__(stages, dict(enumerate(spec.fields)), sender, timer, count)
        self._parts = [_Part(stage, spec, config.method, device) for stage in stages]
        self._method = config.method
        self._classes = spec.classes
        self._image = spec.input_shape(0)
        self._group = group
        self._device = device
        self._layout = group.topology.layout
        self._schedules: dict[tuple[bool, int], Schedule] = {}
        self._clips = any(
            config.stage(j).optimizer.clip is not None for j in range(self._layout.stages)
        )
        self._holds_first = stages[0].index == 0
        self._holds_last = stages[-1].index == self._layout.stages - 1

    def train(self, arrival: Arrival) -> None:
        """One step of all stages on the batch."""
        item = arrival.item
        self._hand_on(arrival)
        self._lap(Kind.WAIT_OUTPUT, "send")
        self.stages[0].seed(item.round_step)
        schedule = self._schedule(True, item.rows)
        images = (arrival.batch,) if self._holds_first else ()
        labels = arrival.labels if self._holds_last else None
        schedule.step(*images, target=labels, return_outputs=False)
        # What is left behind the last backward is sending. In a step the library waits for both
        # neighbours in one call, which counts as waiting for input.
        self._lap(Kind.WAIT_OUTPUT, "send")
        norm = None
        if self._clips:
            squares = torch.stack([stage.squared_norm() for stage in self.stages])
            norm = self._group.total(squares.sum()).sqrt()
        for stage in self.stages:
            if not stage.learner.is_exit:
                stage.count_rows(item.rows)
            stage.update(item.round_step, norm)
        self._lap(Kind.BUSY, "step")

    def evaluate(self, arrival: Arrival) -> None:
        """Counts loss and hits of the last stage."""
        self._hand_on(arrival)
        schedule = self._schedule(False, arrival.item.rows)
        images = (arrival.batch,) if self._holds_first else ()
        with torch.no_grad():
            logits = schedule.eval(*images)
            if self._holds_last:
                self.stages[-1].test_loss(logits, arrival.labels)
                self._count_ensemble(logits, arrival.labels)  # of one exit

    def _hand_on(self, arrival: Arrival) -> None:
        if self._sender is not None:
            self._sender.wait()
            self._sender.send(arrival.item, {LABELS: arrival.labels})

    def _lap(self, kind: Kind, what: str | None = None) -> None:
        self._timer.lap(self.stages[0].index, kind, what)

    def _schedule(self, learns: bool, rows: int) -> Schedule:
        """The schedule of a batch of `rows`; static buffers make it one a size."""
        key = learns, rows
        if key not in self._schedules:
            self._schedules[key] = self._build(learns, rows)
        return self._schedules[key]

    def _build(self, learns: bool, rows: int) -> Schedule:
        name = self._method.schedule or "1f1b"
        wanted = range(min(self._method.microbatches, rows), 0, -1)
        equal = [m for m in wanted if rows % m == 0]
        fitting = [m for m in equal if fits(name, m, self._layout)]
        # An uneven last batch may not divide so: GPipe takes any number of micro-batches, and
        # the sum of the gradients is the same.
        m = (fitting or equal)[0]
        kind = SCHEDULES[name]
        if self._layout.placement == "line" and (not learns or not fitting):
            kind = ScheduleGPipe
        stages = [self._stage(part, rows // m, learns) for part in self._parts]
        loss = self._loss(m) if learns else None
        line = self._layout.placement == "line"
        return kind(  # type: ignore[no-any-return]
            stages[0] if line else stages, m, loss_fn=loss, scale_grads=False
        )

    def _loss(self, m: int) -> Any:
        last = self.stages[-1]

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            """The share of a micro-batch in the mean loss of the batch."""
            value = last.loss(logits, labels) / m
            self._timer.lap(last.index, Kind.BUSY, "forward")
            return value

        return loss

    def _stage(self, part: _Part, rows: int, learns: bool) -> PipelineStage:
        first, last = part.index == 0, part.index == self._layout.stages - 1
        came = torch.empty(rows, *self._image) if first else part.came.example(rows)
        made = torch.empty(rows, self._classes) if last else part.made.example(rows)
        came.requires_grad_(learns and not first)
        made.requires_grad_(learns)
        assert self._group.pipeline is not None
        return _TimedStage(
            part,
            self._layout.stages,
            self._device.torch_device,
            came,
            made,
            self._group.pipeline,
            self._timer if learns else None,
        )


class _Wire:
    """A field as the library carries it: contiguous, its dimensions in the order of memory."""

    def __init__(self, field: Field) -> None:
        order = sorted(range(len(field.shape)), key=lambda at: -field.strides[at])
        self._there = (0, *(at + 1 for at in order))
        self._back = tuple(sorted(range(len(self._there)), key=self._there.__getitem__))
        self._shape = tuple(field.shape[at] for at in order)
        self._dtype = field.dtype

    def example(self, rows: int) -> Tensor:
        return torch.empty(rows, *self._shape, dtype=self._dtype)

    def pack(self, features: Tensor, owned: bool) -> Tensor:
        """
        Args:
            owned: as memory of its own, not as a view: what splits backward in two parts
                (zero bubble) detaches it in place.
        """
        turned = features.to(self._dtype).permute(self._there)
        return turned.clone(memory_format=torch.contiguous_format) if owned else turned.contiguous()

    def unpack(self, batch: Tensor) -> Tensor:
        return batch.permute(self._back)


class _Part(nn.Module):
    """The segments of a stage, from wire to wire."""

    def __init__(
        self, stage: Stage, spec: PipelineSpec, method: BackpropConfig, device: Device
    ) -> None:
        super().__init__()
        j = self.index = stage.index
        self.segments = stage.learner.segments
        self._device = device
        self._precision = stage.settings.precision.name
        self._splits_backward = method.schedule == "zbv"
        self._has_below, self._has_above = j > 0, j < len(spec.fields)
        if self._has_below:
            self.came = _Wire(spec.fields[j - 1])
        if self._has_above:
            self.made = _Wire(spec.fields[j])

    def forward(self, batch: Tensor) -> Tensor:
        if self._has_below:
            batch = self.came.unpack(batch)
        batch = admit(batch, self._precision)
        with self._device.autocast(self._precision):
            features: Tensor = self.segments(batch)
        # Logits become fp32 here, so that their loss is computed in it.
        if not self._has_above:
            return features.float()
        return self.made.pack(features, owned=self._splits_backward)


class _TimedStage(PipelineStage):
    """Tells the timer what is computing, and what is waiting for a neighbour.

    Args:
        timer: None: nobody is told, and the loop counts all of it as evaluating.
    """

    def __init__(
        self,
        part: _Part,
        count: int,
        device: torch.device,
        came: Tensor,
        made: Tensor,
        group: TorchGroup,
        timer: Timer | None,
    ) -> None:
        super().__init__(part, part.index, count, device, came, made, group=group)
        self._timer = timer

    # torch 2.14's runtime hands gradients from stage to stage of a process (v) in a forward-only
    # run too, where there are none, and fails.

    def get_local_bwd_output(self, mb_index: int) -> Any:
        if not self.has_backward:
            return ()
        return super().get_local_bwd_output(mb_index)  # type: ignore[no-untyped-call]

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        self._lap(Kind.WAIT_INPUT)
        result = super().forward_one_chunk(*args, **kwargs)
        self._lap(Kind.BUSY, "forward")
        return result

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        self._lap(Kind.WAIT_INPUT)
        super().backward_one_chunk(*args, **kwargs)
        self._lap(Kind.BUSY, "backward")

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        self._lap(Kind.WAIT_INPUT)
        super().backward_weight_one_chunk(*args, **kwargs)
        self._lap(Kind.BUSY, "weights")

    def _lap(self, kind: Kind, what: str | None = None) -> None:
        if self._timer is not None:
            self._timer.lap(self.stage_index, kind, what)


def check_microbatches(config: Config, layout: Layout, plan: BatchSchedule) -> None:
    """Raises ConfigError for settings that a pipeline of backprop cannot have."""
    method = config.method
    if not layout.is_pipelined or not isinstance(method, BackpropConfig):
        return
    m, key = method.microbatches, "method.microbatches"
    name = method.schedule or "1f1b"
    if plan.batch_size % m or plan.batch_size // m < 2:
        allowed = f"a number that divides batch_size={plan.batch_size} into parts of 2 or more"
        raise ConfigError(key, m, allowed)
    if not fits(name, m, layout):
        least = {"1f1b": f"{layout.stages} or more, the stages"}
        allowed = least.get(name, f"a multiple of {layout.processes}, the processes")
        raise ConfigError(key, m, f"{allowed}, for method.schedule={name}")
    for j in range(layout.stages):
        if config.stage(j).precision.name == "fp16":
            hint = "The library scales no losses"
            raise ConfigError("precision", "fp16", "fp32 or bf16 in a pipeline of backprop", hint)


def fits(schedule: str, m: int, layout: Layout) -> bool:
    """Whether a schedule of `torch.distributed.pipelining` takes `m` micro-batches."""
    if schedule == "1f1b":
        return m >= layout.stages
    if schedule == "interleaved_1f1b":
        return m % layout.processes == 0
    return True
