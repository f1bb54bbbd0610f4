"""Runners in this process alone: arrivals come from a script, messages stay in memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods import RunPlan
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import HEADER
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit
from dglpipe.runtime import failure
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.worker import open_trainer
from harness.configs import layout, make_config
from harness.transports import ScriptedTransport
from harness.worlds import CPU

TINY = (
    *("model=cnn4", "model.width=4", "data=synthetic", "data.samples=10", "data.image_size=8"),
    *("data.classes=3", "batch_size=4", "epochs=1", "schedule=constant"),
)
"""One epoch: training batches of 4, 4, 2 rows, then one test batch of 2 rows."""


def open_runner(*overrides: str, stages: int = 3, processes: int = 1, rank: int = 0) -> Any:
    """The runner of one rank of a tiny run. Its neighbours are `ScriptedTransport`."""
    plan, source = _plan(overrides, stages, processes)
    topology = plan.layout.at(rank)
    group = ProcessGroup.alone(topology)
    group.previous = None if topology.is_first else ScriptedTransport()
    group.following = None if topology.is_last else ScriptedTransport()
    return open_trainer(plan, source, CPU, group).runner


@functools.lru_cache
def _plan(overrides: tuple[str, ...], stages: int, processes: int) -> tuple[RunPlan, DataSource]:
    config = make_config(*TINY, *overrides, f"pipeline.stages={stages}")
    source = open_images(config)
    return make_plan(config, layout(stages, processes), source=source), source


class ScriptedInputs:
    """Inputs that give prepared arrivals.

    Attributes:
        taken: the arrivals so far.
    """

    workers = None

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self._arrivals = iter(arrivals)
        self.taken: list[Arrival] = []
        self.is_closed = False

    def take(self) -> Arrival:
        self.taken.append(next(self._arrivals))
        return self.taken[-1]

    def check(self) -> None:
        """All arrivals come from the script."""

    def close(self) -> None:
        self.is_closed = True


def feed(runner: Any, items: Iterable[BatchItem] | None = None) -> ScriptedInputs:
    """Replaces the inputs of `runner` by random batches.

    Args:
        items: the batches; None: all of the schedule.
    """
    runner.inputs = ScriptedInputs(arrivals(runner, items))
    return runner.inputs


def arrivals(runner: Any, items: Iterable[BatchItem] | None = None) -> Iterator[Arrival]:
    """Random batches for the first stage of `runner`, as from the data set or the stage below."""
    plan, first = runner.context.plan, runner.stages[0].index
    generator = torch.Generator().manual_seed(first)
    for item in plan.schedule.items() if items is None else items:
        item = plan.schedule.crossing(item, first - 1) if first else item
        shape = (item.rows, *plan.spec.input_shape(first))
        batch = torch.randn(shape, generator=generator)
        if first:
            batch = plan.spec.fields[first - 1].normalise(batch)
        else:
            batch = batch.to(memory_format=torch.channels_last)
        labels = torch.randint(plan.spec.classes, (item.rows,), generator=generator)
        ensemble = None
        if first and item.phase is Phase.TEST:
            ensemble = torch.rand(item.rows, plan.spec.classes, generator=generator)
        yield Arrival(item, batch, labels, ensemble)


class Lesson(NamedTuple):
    """One call of `Stage.learn`."""

    stage: int
    step: int
    inputs: Tensor
    labels: Tensor
    output: Tensor
    """What a copy of the stage computes from the inputs with the weights before the step."""


def watch(stages: Sequence[Stage]) -> list[Lesson]:
    """The lessons of `stages` from now on; the list grows."""
    lessons: list[Lesson] = []
    for stage in stages:
        _watch(stage, lessons)
    return lessons


def _watch(stage: Stage, lessons: list[Lesson]) -> None:
    learn = stage.learn

    def noted(
        inputs: Tensor, labels: Tensor, step: int, emit: Emit | None, *rest: Any, **more: Any
    ):
        stage.seed(step)
        lessons.append(Lesson(stage.index, step, inputs, labels.clone(), output_of(stage, inputs)))
        learn(inputs, labels, step, emit, *rest, **more)

    stage.learn = noted  # type: ignore[method-assign]


def output_of(stage: Stage, inputs: Tensor, training: bool = True) -> Tensor:
    """Output that a copy of `stage` computes."""
    module = copy.deepcopy(stage.module).train(training)
    with torch.no_grad():
        return module.output(module.segments(inputs))


def evaluated(stage: Stage, inputs: Tensor) -> Tensor:
    """Features that `stage` computes in evaluation mode; the stage stays as it is."""
    return output_of(stage, inputs, training=False)


def is_cut_off(batch: Tensor) -> bool:
    """Whether no gradient flows from `batch` to the stage that computed it."""
    return not batch.requires_grad and batch.grad_fn is None


def states(stages: Sequence[Stage]) -> dict[int, dict[str, Tensor]]:
    """Copies of all weights and buffers, by stage."""
    return {
        stage.index: {key: value.clone() for key, value in stage.module.state_dict().items()}
        for stage in stages
    }


def changed(stages: Sequence[Stage], before: Mapping[int, Mapping[str, Tensor]]) -> list[int]:
    """The stages with a weight or buffer that differs from `before`."""
    return [
        stage.index
        for stage in stages
        if any(
            not torch.equal(value, before[stage.index][key])
            for key, value in stage.module.state_dict().items()
        )
    ]


def read_message(runner: Any, number: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Message `number` that `runner` sent, from 0: its header, and its tensors by name."""
    message = runner.context.group.following.sent[number]
    phase, _, rows = header = tuple(message[: 3 * 8].view(torch.int64).tolist())
    views = runner.context.plan.formats(runner.context.link_above)[Phase(phase)]
    parts = views.views(message, rows)
    del parts[HEADER]
    return header, parts


def fail_at(stage: Stage, step: int) -> None:
    """Makes `stage` fail when it learns `step`."""
    learn = stage.learn

    def failing(inputs: Tensor, labels: Tensor, now: int, *rest: Any, **more: Any) -> None:
        if now == step:
            raise ZeroDivisionError("on purpose")
        learn(inputs, labels, now, *rest, **more)

    stage.learn = failing  # type: ignore[method-assign]


def report_of(runner: Any, error: BaseException) -> str:
    """What the process of `runner` reports of its failure."""
    topology = runner.context.topology
    record = failure.record(error, topology.rank, topology.name(), runner.step)
    return record.describe(Path("rank.log"), False)
