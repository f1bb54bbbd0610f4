"""Decoupled parallel backprop with delayed gradients.

Huo et al., ICML 2018 (arXiv 1804.10574); `methods/delayed.py` has the schedule. The activations of
a batch stay in memory until its gradient has come down, with the weights that computed them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from dglpipe.methods.base import RunContext
from dglpipe.methods.delayed import Delayed, DelayedRunner
from dglpipe.methods.runner import Runner
from dglpipe.methods.two_way import Entry
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.link import Stash
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit, cast_input


class Ddg(Delayed):
    """Delayed gradients."""

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """The activations of K - j batches."""
        return Fraction(stages - stage)

    def stash(self, stage: int, stages: int) -> Stash:
        """The inputs and the weights of K - j batches; the last stage keeps none."""
        later = stages - 1 - stage
        count = later + 1 if later else 0
        return Stash(inputs=count, weights=count, from_above=count, to_below=2 if stage else 0)

    def runner(self, context: RunContext) -> Runner:
        return DdgRunner(context)


class DdgRunner(DelayedRunner):
    """Keeps the graph of every batch until its gradient has come down."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        for stage in self.stages:
            kept = self.kept[stage.index]
            restored = [self._run_again(stage, entry) for entry in kept]
            kept.clear()
            kept.extend(restored)

    def ascend(self, stage: Stage, arrival: Arrival, emit: Emit | None) -> None:
        """Runs a batch with copies of weights and buffers, which no later step changes."""
        step = arrival.item.round_step
        stage.seed(step)
        inputs = _leaf(stage, arrival.batch, copies=not self.is_last(stage))
        weights, buffers = ({}, {}) if self.is_last(stage) else _copies(stage)
        changed = {name: one.clone() for name, one in buffers.items()}
        output = _run(stage, inputs, {**weights, **changed})
        with torch.no_grad():
            for name, one in stage.module.segments.named_buffers():
                if name in changed:
                    one.copy_(changed[name])
        if emit is not None:
            emit(output)
            stage.count_rows(arrival.item.rows)
        labels = arrival.labels.clone()
        state = {"weights": weights, "buffers": buffers}
        self.keep(stage, step, inputs=inputs, labels=labels, output=output, **state)

    def graph(self, stage: Stage, entry: Entry) -> tuple[Tensor, Tensor]:
        del stage
        return entry.tensors["inputs"], entry.tensors["output"]

    def gather(self, stage: Stage, entry: Entry) -> None:
        own = dict(stage.module.segments.named_parameters())
        for name, copy in entry.tensors["weights"].items():
            own[name].grad = copy.grad

    def saved(self, entry: Entry) -> Entry:
        """Without the graph, which `_run_again` computes from the rest."""
        tensors: dict[str, Any] = {**entry.tensors}
        del tensors["output"]
        tensors["inputs"] = tensors["inputs"].detach()
        tensors["weights"] = {key: one.detach() for key, one in tensors["weights"].items()}
        return Entry(entry.step, tensors)

    def _run_again(self, stage: Stage, entry: Entry) -> Entry:
        """A kept batch of a checkpoint, with its graph. The buffers of the stage itself are from a
        later step, and stay as they are."""
        stage.seed(entry.step)
        inputs = _leaf(stage, entry.tensors["inputs"], copies=True)
        own = dict(stage.module.segments.named_parameters())
        weights = {
            key: one.detach().requires_grad_(own[key].requires_grad)
            for key, one in entry.tensors["weights"].items()
        }
        buffers = {key: one.clone() for key, one in entry.tensors["buffers"].items()}
        output = _run(stage, inputs, {**weights, **buffers})
        again = {"inputs": inputs, "weights": weights, "output": output}
        return Entry(entry.step, {**entry.tensors, **again})


def _leaf(stage: Stage, batch: Tensor, copies: bool) -> Tensor:
    """The inputs of `stage`, with a gradient above stage 0. The buffer of a link is used again."""
    inputs = cast_input(batch.detach(), stage.settings.precision.name)
    if copies:
        inputs = inputs.clone()
    return inputs.requires_grad_() if stage.index else inputs


def _copies(stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the weights, and of the buffers before the batch."""
    segments = stage.module.segments
    weights = {
        name: one.detach().clone().requires_grad_(one.requires_grad)
        for name, one in segments.named_parameters()
    }
    return weights, {name: one.detach().clone() for name, one in segments.named_buffers()}


def _run(stage: Stage, inputs: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The output of `stage`, computed with `tensors` in place of its own."""
    with stage.autocast():
        output: Tensor = functional_call(stage.module.segments, tensors, (inputs,))
    return output
