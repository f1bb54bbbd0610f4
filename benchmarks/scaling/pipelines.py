"""Pipelined backprop by `torch.distributed.pipelining`, with modules that sleep.

A module takes one part of its time in forward and two in backward; a zero-bubble schedule may
postpone one of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleZBVZeroBubble,
)

from benchmarks.processes import CPU
from benchmarks.scaling.case import Case
from benchmarks.scaling.slow_links import slow_down
from benchmarks.scaling.stage import StepTimer, compute
from dglpipe.pipeline.process_group import ProcessGroup


class _SleepForInput(torch.autograd.Function):
    """Sleeps one part in forward and one for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, weight: Tensor, seconds: float, spin: float) -> Tensor:
        ctx.seconds, ctx.spin = seconds, spin
        compute(seconds, spin)
        return batch + weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        compute(ctx.seconds, ctx.spin)
        ctx.seconds = 0.0  # a schedule that postpones the weights calls this twice
        # The gradient of a sum is an expanded scalar; a message must be dense.
        return gradient.contiguous(), gradient.sum(), None, None


class _SleepForWeights(torch.autograd.Function):
    """Sleeps one part for the gradient of the weights, which a schedule may postpone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, seconds: float, spin: float) -> Tensor:
        ctx.seconds, ctx.spin = seconds, spin
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        compute(ctx.seconds, ctx.spin)
        return gradients[0], None, None


class _Module(nn.Module):
    """(rows,) -> (rows,), one part of its time in forward and two in backward."""

    def __init__(self, spin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seconds = 0.0
        """Of the next micro-batch."""
        self._spin = spin

    def forward(self, batch: Tensor) -> Tensor:
        part = self.seconds / 3
        weight = _SleepForWeights.apply(self.weight, part, self._spin)
        result: Tensor = _SleepForInput.apply(batch, weight, part, self._spin)
        return result


def pipeline(rank: int, case: Case, group: ProcessGroup) -> float:
    """A process of pipelined backprop, with the same computing a step as a stage of the chain."""
    if case.link.is_emulated:
        slow_down(case.link.delay, case.link.rate)
    m, count = case.microbatches, case.stages
    own = [rank, 2 * count - 1 - rank] if case.way == "zbv" else [rank]
    whole = count * len(own)
    rows = case.kib * 1024 // 4 // m
    stages: list[Any] = []
    modules = [_Module(case.spin) for _ in own]
    for j, module in zip(own, modules, strict=True):
        example = torch.zeros(rows, requires_grad=j > 0)
        output = torch.zeros(rows, requires_grad=True)
        stages.append(
            PipelineStage(module, j, whole, CPU.torch_device, example, output, group=group.pipeline)
        )

    def loss(output: Tensor, _target: Tensor) -> Tensor:
        return output.sum()

    schedule: Any
    if case.way == "zbv":
        schedule = ScheduleZBVZeroBubble(stages, m, loss_fn=loss)
    else:
        kind = ScheduleGPipe if case.way == "gpipe" else Schedule1F1B
        schedule = kind(stages[0], m, loss_fn=loss)
    batch = torch.zeros(rows * m)
    images = (batch,) if 0 in own else ()
    target = batch if whole - 1 in own else None
    timer = StepTimer(rank, case)
    for step in range(1, case.steps + 1):
        seconds = timer.draw()
        for module in modules:
            module.seconds = seconds / m / len(own)
        schedule.step(*images, target=target, return_outputs=False)
        timer.end_step(step)
    return timer.seconds_a_step()
