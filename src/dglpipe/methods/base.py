"""The extension point: what a method of learning declares, and what a run gives to it.

A method is one class. Before a run it says which process runs which stage, builds the auxiliary
modules of a stage, declares the messages between stages and the buffers of the links. In each
process it makes a `Runner`, which trains and evaluates the stages of that process:

    settings ── build_method ──▶ Method ── runner(RunContext) ──▶ Runner ── run() ──▶ Trainer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dglpipe.config import Config, MethodConfig, PipelineConfig
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule, Phase
from dglpipe.methods.run_plan import RunPlan
from dglpipe.models.features import Boundary
from dglpipe.models.heads import head_on
from dglpipe.models.losses import build_loss
from dglpipe.monitoring.timers import Timer
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival, DataInputs, Inputs, LinkInputs
from dglpipe.pipeline.link import LinkBuffers, Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, Field, contiguous_field
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import HEAD, Learning, Objective, Stage
from dglpipe.pipeline.topology import Layout, Topology


@dataclass(frozen=True, slots=True)
class Placement:
    """How many stages a method runs on how many processes, and which stage runs where.

    Attributes:
        stages: K.
        processes: P.
        kind: `chain`, `line`, `loop` or `v`; see `dglpipe.pipeline.topology`.
    """

    stages: int
    processes: int
    kind: str = "chain"


@dataclass(frozen=True, slots=True)
class Emission:
    """What a stage knows when it sends a training batch on.

    Attributes:
        stage: j.
        inputs: (B, ...), as they arrived; the images in stage 0.
        features: (B, ...), detached.
        labels: (B,), int64.
        extras: the extras of the message that arrived; empty in stage 0.
    """

    stage: int
    inputs: Tensor
    features: Tensor
    labels: Tensor
    extras: Mapping[str, Tensor]


class Update(NamedTuple):
    """Some stages of a process have made an optimizer step."""

    step: int
    """Of these stages, from 1."""
    epoch: int
    stages: Sequence[Stage]
    """The stages that made the step."""
    schedule_step: int
    """The step that determines the learning rate."""
    rows: int
    """Rows that passed the last stage of the process; 0 if another stage made the step."""
    ends_pass: bool
    """Whether the batch is the last of its epoch."""
    saved: Sequence[Stage]
    """The stages whose state belongs to a checkpoint of this step."""
    is_lockstep: bool = True
    """Whether the stages of the process share one count of steps."""


class Evaluation(NamedTuple):
    """An evaluation has passed all stages of a process."""

    step: int
    epoch: int
    hits: int | None
    """Hits of the ensemble, in the process of the last stage."""


Event = Update | Evaluation


@dataclass(frozen=True)
class RunContext:
    """What a runner gets.

    Attributes:
        plan: the plan of the run.
        method: the method of the run.
        source: the data set.
        device: where the process computes.
        group: the other processes.
        timer: books the time of the process.
        stages: the stages of the process, in order, with the state of the checkpoint.
        done: training steps before the checkpoint from which the run resumes; 0: none.
        restored: what the runner saved with each stage; empty where nothing was saved.
    """

    plan: RunPlan
    method: Method
    source: DataSource
    device: Device
    group: ProcessGroup
    timer: Timer
    stages: Sequence[Stage]
    done: int
    restored: Mapping[int, Any]

    @property
    def topology(self) -> Topology:
        """The place of the process among the others."""
        return self.group.topology

    @property
    def link_below(self) -> int:
        """The link through which the process receives."""
        return self.link_above - len(self.stages) if self._is_chain else self.link_above - 1

    @property
    def link_above(self) -> int:
        """The link through which the process sends."""
        return self.stages[-1].index if self._is_chain else self.topology.process

    @property
    def _is_chain(self) -> bool:
        """Whether links connect stages. In a pipeline of backprop they connect processes."""
        return not self.topology.layout.is_pipelined

    def open_data(self, items: Iterable[BatchItem]) -> DataInputs:
        """Loads the data set for the batches `items`."""
        size, seed = self.plan.data.train, self.plan.config.seed
        return DataInputs(self.source.load(), size, items, seed, self.device)

    def open_inputs(self, items: Iterator[BatchItem]) -> Inputs:
        """The batches `items` from the data set, or from the process below."""
        if self.group.previous is None:
            return self.open_data(items)
        link = self.link_below
        receiver = Receiver(
            self.group.previous,
            self.plan.formats(link),
            (self.plan.schedule.crossing(item, link) for item in items),
            self.plan.config.pipeline.depth,
            self.device.torch_device,
            f"link {link} -> {link + 1}",
        )
        return LinkInputs(receiver, [field.name for field in self.plan.extras(link)])

    def open_sender(self) -> Sender | None:
        """The link to the process above; None in the last process."""
        if self.group.following is None:
            return None
        formats = self.plan.formats(self.link_above)
        return Sender(self.group.following, formats, self.device.torch_device)

    def extras(self, emission: Emission) -> dict[str, Tensor]:
        """The extras of the message that a stage sends, in the dtype and strides of the link."""
        fields = self.plan.extras(emission.stage)
        if not fields:
            return {}
        filled = self.method.outgoing(emission)
        return {field.name: field.normalise(filled[field.name]) for field in fields}

    def message(self, arrival: Arrival, stage: int, features: Tensor) -> dict[str, Tensor]:
        """The parts of the message that `stage` sends for the batch `arrival`."""
        features = features.detach()
        emission = Emission(stage, arrival.batch, features, arrival.labels, arrival.extras)
        return {LABELS: arrival.labels, ACTIVATIONS: features, **self.extras(emission)}


class Runner(Protocol):
    """What one process does with its stages."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of the process, in order."""
        ...

    @property
    def step(self) -> int:
        """The training step under way, for errors; 0 before the first."""
        ...

    @property
    def done_by_stage(self) -> Mapping[int, int]:
        """Steps that single stages had made before, where they differ from `RunContext.done`."""
        ...

    @property
    def decoders(self) -> int | None:
        """Processes that decode images for this process; None where there are none."""
        ...

    def run(self) -> Iterator[Event]:
        """Trains and evaluates to the end of the run."""
        ...

    def check(self) -> None:
        """Raises LinkError if a message was not the scheduled one; waits for the device."""

    def close(self) -> None:
        """Ends loading, after the last event."""

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any] | None:
        """What a checkpoint keeps of each stage besides weights, optimizer and loss scaler:
        tensors, numbers, dicts and lists. None: nothing."""

    def report(self, stage: Stage) -> Mapping[str, Any]:
        """Further entries of `stage` in the final report."""
        ...


class Method(ABC):
    """How the stages of a chain learn.

    The defaults describe decoupled greedy learning: every stage has a head and learns from
    its own loss in every step. A method of its own derives from `dglpipe.methods.Dgl` to change
    modules, messages or the local objective, or from this class to change the runner too.

    Args:
        settings: the group `method` of the configuration.
    """

    flows_back: ClassVar[bool] = False
    """Whether the stages above stage 0 compute the gradient of their input."""
    trains_in_rounds: ClassVar[bool] = False
    """Whether round r trains stage r alone, with the stages below it frozen."""

    def __init__(self, settings: MethodConfig) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        """The name that errors and the summary give."""
        return self.settings.name

    def placement(self, pipeline: PipelineConfig, given: int | None) -> Placement:
        """The number of stages and processes, and the kind of their placement.

        Args:
            given: world size / R of an outside launcher; None: there is none.

        Raises:
            ConfigError: numbers that do not fit the method.
        """
        stages = pipeline.stages or given or 2
        return Placement(stages, pipeline.processes or given or stages)

    def rounds(self, stages: int) -> int:
        """How often a run of `stages` stages goes through its epochs."""
        return stages if self.trains_in_rounds else 1

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Refuses settings that do not fit each other, before anything starts.

        Raises:
            ConfigError: with the key, what was given, what is allowed.
        """
        del config, layout, schedule

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """Builders of the auxiliary modules of the stage below `boundary`, by name.

        The module `head` takes features to logits (B, N). Every other module takes the features
        as its first argument. Names are prefixes in the stage's file. The package seeds each
        module by (seed, name, boundary), so that its weights do not depend on K or P. The last
        stage has none: it ends in the network's own classifier.
        """
        return {HEAD: lambda: head_on(boundary.head, boundary.features, boundary.classes)}

    @property
    def objective(self) -> Objective | None:
        """The local objective of a stage; None: the loss of its logits (`method.loss`)."""
        return None

    def learning(self, label_smoothing: float) -> Learning:
        """Loss and local objective of one stage.

        Raises:
            ConfigError: a loss that cannot be built.
        """
        return Learning(build_loss(self.settings.loss, label_smoothing), self.objective)

    def messages(self, link: int, spec: PipelineSpec) -> tuple[Field, ...]:
        """The tensors of the messages between stage `link` and stage `link + 1`, in order.

        A method that needs more tensors adds fields to this list and fills them in
        `outgoing`. Each field has a name, dtype, row shape, direction and phases.
        """
        labels = contiguous_field(LABELS, torch.int64, ())
        exits = contiguous_field(ENSEMBLE, torch.float32, (spec.classes,), phases=[Phase.TEST])
        return labels, exits, spec.fields[link]

    def outgoing(self, emission: Emission) -> Mapping[str, Tensor]:
        """Fills the declared extras of a training message, by name, (B, ...) each."""
        del emission
        return {}

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        """The memory of a link.

        Args:
            link: index of the stage below the link.
            depth: D (`pipeline.depth`).
        """
        del link
        return LinkBuffers(sender=1, receiver=depth)

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """Share of a batch whose activations `stage` keeps for backward at a time."""
        del stage, stages
        return Fraction(1)

    def utilization(self, layout: Layout) -> float:
        """Largest share of a step in which a process can compute if links cost nothing.

        Local learning has no bubbles: 1.
        """
        del layout
        return 1.0

    @abstractmethod
    def runner(self, context: RunContext) -> Runner:
        """The runner of one process."""
