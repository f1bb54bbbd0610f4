"""Backprop through all stages: the baseline of every comparison.

One process trains a single stage by plain backprop. Several processes run a pipeline schedule of
`torch.distributed.pipelining`, which sends activations forward and gradients back. A batch is
divided into m equal micro-batches; the gradient is the gradient of the mean loss of the batch. The
links carry the labels. Batch norm computes its statistics over micro-batches of B / m rows, and
updates its running statistics m times per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
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

from dglpipe.config import BackpropConfig, Config, PipelineConfig
from dglpipe.config.method import PLACEMENTS
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Method, Placement, RunContext
from dglpipe.methods.chain_runner import ChainRunner
from dglpipe.methods.dgl import DglRunner
from dglpipe.methods.runner import Runner
from dglpipe.models.features import Boundary
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, Field, contiguous_field
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import cast_input
from dglpipe.pipeline.topology import Layout

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
}


class Backprop(Method):
    """One loss after the last stage; its gradient flows back through all stages."""

    flows_back = True
    measures = True
    learns_locally = False
    settings: BackpropConfig

    def placement(self, pipeline: PipelineConfig, given: int | None) -> Placement:
        """One process with one stage, or a pipeline with the placement of its schedule."""
        method = self.settings
        several = method.schedule is not None or (pipeline.processes or given or 1) > 1
        schedule = method.schedule or "1f1b"
        kind = PLACEMENTS[schedule]
        each = 1 if kind == "line" else 2
        default = each * (pipeline.processes or given or 2) if several else 1
        stages = pipeline.stages or default
        if stages == 1:
            if method.schedule is not None:
                hint = "One stage is trained by plain backprop, without micro-batches"
                raise ConfigError("method.schedule", schedule, "null for one stage", hint)
            return Placement(1, pipeline.processes or given or 1)
        processes = pipeline.processes or given or max(1, stages // each)
        if pipeline.replicas > 1:
            hint = "Replicas require pipeline.stages=1"
            raise ConfigError("pipeline.replicas", pipeline.replicas, "1 for a pipeline", hint)
        same = stages % processes == 0 and stages > processes
        fits, rule = {
            "line": (stages == processes, "one stage per process"),
            "v": (stages == 2 * processes, "two stages per process"),
            "loop": (same, "the same number of stages per process, two or more"),
        }[kind]
        if processes == 1 or not fits:
            got = f"{stages} stages on {processes} process" + "es" * (processes > 1)
            allowed = f"{rule} with method.schedule={schedule}, on two processes or more"
            raise ConfigError("pipeline.stages", got, allowed)
        return Placement(stages, processes, kind)

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Raises ConfigError for micro-batches that do not fit the batch or the schedule, and for
        `probe` in a pipeline."""
        if not layout.is_pipelined:
            return
        if config.probe.every:
            hint = "Only torch.distributed.pipelining sees the features between the stages"
            allowed = "0 in a pipeline of backprop"
            raise ConfigError("probe.every", config.probe.every, allowed, hint)
        m, key = self.settings.microbatches, "method.microbatches"
        name = self.settings.schedule or "1f1b"
        if schedule.batch_size % m or schedule.batch_size // m < 2:
            size = schedule.batch_size
            allowed = f"a number that divides batch_size={size} into parts of 2 or more"
            raise ConfigError(key, m, allowed)
        if not fits(name, m, layout):
            least = {"1f1b": f"{layout.stages} or more, the stages"}
            allowed = least.get(name, f"a multiple of {layout.processes}, the processes")
            raise ConfigError(key, m, f"{allowed}, for method.schedule={name}")
        for j in range(layout.stages):
            if config.stage(j).precision.name == "fp16":
                hint = "torch.distributed.pipelining scales no losses"
                allowed = "fp32 or bf16 in a pipeline of backprop"
                raise ConfigError("precision", "fp16", allowed, hint)

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """No heads."""
        del boundary
        return {}

    def messages(self, link: int, spec: PipelineSpec) -> tuple[Field, ...]:
        """Labels only: torch.distributed.pipelining sends activations and gradients."""
        del link, spec
        labels = contiguous_field(LABELS, torch.int64, ())
        return labels, contiguous_field(ACTIVATIONS, torch.uint8, (0,))

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """1F1B: stage j of K keeps the activations of min(m, K - j) of m micro-batches."""
        settings = self.settings
        if stages == 1 or settings.schedule not in (None, "1f1b"):
            return Fraction(1)
        return Fraction(min(settings.microbatches, stages - stage), settings.microbatches)

    def utilization(self, layout: Layout) -> float:
        """GPipe and 1F1B: m / (m + P - 1) (Huang et al., 2019). Interleaved, with v stages per
        process: m / (m + (P - 1) / v) (Narayanan et al., 2021). ZBV has no bubbles if forward and
        both parts of backward take the same time (Qi et al., 2024).
        """
        if not layout.is_pipelined:
            return 1.0
        each = layout.stages / layout.processes
        idle = 0.0 if layout.placement == "v" else (layout.processes - 1) / each
        return self.settings.microbatches / (self.settings.microbatches + idle)

    def runner(self, context: RunContext) -> Runner:
        is_pipelined = context.topology.layout.is_pipelined
        return PipelineRunner(context, self.settings) if is_pipelined else DglRunner(context)


def fits(schedule: str, m: int, layout: Layout) -> bool:
    """Whether a schedule of `torch.distributed.pipelining` supports `m` micro-batches."""
    if schedule == "1f1b":
        return m >= layout.stages
    if schedule == "interleaved_1f1b":
        return m % layout.processes == 0
    return True


class PipelineRunner(ChainRunner):
    """Runs the stages of one process in a pipeline of backprop."""

    def __init__(self, context: RunContext, settings: BackpropConfig) -> None:
        super().__init__(context)
        plan, stages = context.plan, self.stages
        self._settings = settings
        self._parts = [_Part(stage, plan.spec, context.device, settings) for stage in stages]
        self._classes = plan.spec.classes
        self._image = plan.spec.input_shape(0)
        self._group = context.group
        self._device = context.device
        self._layout = plan.layout
        self._schedules: dict[tuple[bool, int], Schedule] = {}
        self._clips = any(
            plan.config.stage(j).optimizer.clip is not None for j in range(self._layout.stages)
        )
        self._holds_first = stages[0].index == 0
        self._holds_last = stages[-1].index == self._layout.stages - 1

    def train(self, arrival: Arrival) -> None:
        """Makes one step of all stages of the pipeline on the batch."""
        item = arrival.item
        self._send_labels(arrival)
        self._lap(Kind.WAIT_OUTPUT, "send")
        self.stages[0].seed(item.round_step)
        schedule = self._schedule(True, item.rows)
        images = (arrival.batch,) if self._holds_first else ()
        labels = arrival.labels if self._holds_last else None
        schedule.step(*images, target=labels, return_outputs=False)
        # The library sends the last gradients after the last backward. Within a step it waits for
        # both neighbours in one call, which counts as waiting for input.
        self._lap(Kind.WAIT_OUTPUT, "send")
        norm = None
        if self._clips:
            squares = torch.stack([stage.squared_norm() for stage in self.stages])
            norm = self._group.total(squares.sum()).sqrt()
        for stage in self.stages:
            if not stage.module.is_exit:
                stage.count_rows(item.rows)
            stage.update(item.round_step, norm)
        self._lap(Kind.BUSY, "step")

    def evaluate(self, arrival: Arrival) -> None:
        """Counts loss and hits of the last stage."""
        self._send_labels(arrival)
        schedule = self._schedule(False, arrival.item.rows)
        images = (arrival.batch,) if self._holds_first else ()
        with torch.no_grad():
            logits = schedule.eval(*images)
            if self._holds_last:
                self.stages[-1].test_loss(logits, arrival.labels)
                self.exits.count_ensemble(logits, arrival.labels)  # there is only one exit

    def _send_labels(self, arrival: Arrival) -> None:
        if self.sender is not None:
            self.sender.wait()
            self.sender.send(arrival.item, {LABELS: arrival.labels})

    def _lap(self, kind: Kind, what: str | None = None) -> None:
        self.timer.lap(self.stages[0].index, kind, what)

    def _schedule(self, learns: bool, rows: int) -> Schedule:
        """The schedule for a batch of `rows`. Buffers are static, so each size has a schedule."""
        key = learns, rows
        if key in self._schedules:
            return self._schedules[key]
        name = self._settings.schedule or "1f1b"
        wanted = range(min(self._settings.microbatches, rows), 0, -1)
        equal = [m for m in wanted if rows % m == 0]
        fitting = [m for m in equal if fits(name, m, self._layout)]
        # An uneven last batch may not be divisible by m. GPipe supports any number of
        # micro-batches, and the sum of the gradients is the same.
        m = (fitting or equal)[0]
        kind = SCHEDULES[name]
        if self._layout.placement == "line" and (not learns or not fitting):
            kind = ScheduleGPipe
        stages = [self._stage(part, rows // m, learns) for part in self._parts]
        loss = self._loss(m) if learns else None
        own = stages[0] if self._layout.placement == "line" else stages
        schedule: Schedule = kind(own, m, loss_fn=loss, scale_grads=False)
        self._schedules[key] = schedule
        return schedule

    def _loss(self, m: int) -> Any:
        last = self.stages[-1]

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            """The contribution of a micro-batch to the mean loss of the batch."""
            value = last.loss(logits, labels) / m
            self.timer.lap(last.index, Kind.BUSY, "forward")
            return value

        return loss

    def _stage(self, part: _Part, rows: int, learns: bool) -> PipelineStage:
        first, last = part.index == 0, part.index == self._layout.stages - 1
        example_input = torch.empty(rows, *self._image) if first else part.input_wire.example(rows)
        example_output = (
            torch.empty(rows, self._classes) if last else part.output_wire.example(rows)
        )
        example_input.requires_grad_(learns and not first)
        example_output.requires_grad_(learns)
        assert self._group.pipeline is not None
        return _TimedStage(
            part,
            self._layout.stages,
            self._device.torch_device,
            example_input,
            example_output,
            self._group.pipeline,
            self.timer if learns else None,
        )


class _Wire:
    """Converts a field to the contiguous tensors that the library sends, and back."""

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
            owned: return a copy instead of a view. A zero-bubble schedule detaches its tensors in
                place, which is an error for a view.
        """
        turned = features.to(self._dtype).permute(self._there)
        return turned.clone(memory_format=torch.contiguous_format) if owned else turned.contiguous()

    def unpack(self, batch: Tensor) -> Tensor:
        return batch.permute(self._back)


class _Part(nn.Module):
    """The segments of a stage, with inputs and outputs in the format of `_Wire`."""

    def __init__(
        self, stage: Stage, spec: PipelineSpec, device: Device, settings: BackpropConfig
    ) -> None:
        super().__init__()
        j = self.index = stage.index
        self.segments = stage.module.segments
        self._device = device
        self._precision = stage.settings.precision.name
        self._splits_backward = settings.schedule == "zbv"
        self._has_below, self._has_above = j > 0, j < len(spec.fields)
        if self._has_below:
            self.input_wire = _Wire(spec.fields[j - 1])
        if self._has_above:
            self.output_wire = _Wire(spec.fields[j])

    def forward(self, batch: Tensor) -> Tensor:
        if self._has_below:
            batch = self.input_wire.unpack(batch)
        batch = cast_input(batch, self._precision)
        with self._device.autocast(self._precision):
            features: Tensor = self.segments(batch)
        # Convert logits to fp32, so that the loss is computed in fp32.
        if not self._has_above:
            return features.float()
        return self.output_wire.pack(features, owned=self._splits_backward)


class _TimedStage(PipelineStage):
    """A stage that measures the time of computation and of waiting for a neighbour.

    Args:
        example_input: a micro-batch of inputs, for shape and dtype.
        example_output: a micro-batch of outputs, for shape and dtype.
        timer: None: no measurement; the runner counts the whole time as evaluation.
    """

    def __init__(
        self,
        part: _Part,
        count: int,
        device: torch.device,
        example_input: Tensor,
        example_output: Tensor,
        group: TorchGroup,
        timer: Timer | None,
    ) -> None:
        examples = example_input, example_output
        super().__init__(part, part.index, count, device, *examples, group=group)
        self._timer = timer

    # torch 2.14 passes gradients between the stages of a process (placement v) even in a
    # forward-only run, and fails because there are none.

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
