"""The interface of methods: `Method`, and the `RunContext` that its runner receives.

A method is one class. Before a run, the method places the stages on processes, builds the auxiliary
modules of a stage, and declares the messages between stages and the buffers of the links. In each
process, the method creates a `Runner`, which trains and evaluates the stages of that process:

    settings ── build_method ──▶ Method ── runner(RunContext) ──▶ Runner ── run() ──▶ Trainer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dglpipe.config import Config, MethodConfig, PipelineConfig
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule, Phase
from dglpipe.methods.emission import Emission
from dglpipe.methods.first_layer import fit_first_layer
from dglpipe.methods.local.base import LocalObjective
from dglpipe.methods.run_plan import RunPlan, down_row_bytes, extra_row_bytes
from dglpipe.methods.runner import Runner
from dglpipe.models.branches import branch_costs
from dglpipe.models.features import Boundary
from dglpipe.models.losses import build_loss
from dglpipe.monitoring.timers import Timer
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival, DataInputs, Inputs, LinkInputs
from dglpipe.pipeline.link import LinkBuffers, Receiver, Sender, Stash
from dglpipe.pipeline.message import (
    ACTIVATIONS,
    ENSEMBLE,
    LABELS,
    Direction,
    Field,
    contiguous_field,
)
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Learning, Stage
from dglpipe.pipeline.stage_module import Objective
from dglpipe.pipeline.topology import Layout, Topology


@dataclass(frozen=True, slots=True)
class Placement:
    """Number of stages and processes, and the assignment of stages to processes.

    Attributes:
        stages: K.
        processes: P.
        kind: `chain`, `line`, `loop` or `v`; see `dglpipe.pipeline.topology`.
    """

    stages: int
    processes: int
    kind: str = "chain"


@dataclass(frozen=True)
class RunContext:
    """The plan, data and resources of one process, for its runner.

    Attributes:
        plan: the plan of the run.
        method: the method of the run.
        source: the data set, not yet loaded.
        device: the device of the process.
        group: communication with the other processes.
        timer: measures the time of the process by stage and kind of activity.
        stages: the stages of the process, in order, with the state of the checkpoint.
        done: step of the checkpoint from which the run resumes; 0 for a new run.
        restored: stage -> state from `Runner.state` in the checkpoint; empty for a new run.
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
        """Stages, replica and neighbours of the process."""
        return self.group.topology

    @property
    def link_below(self) -> int:
        """Index of the link from which the process receives."""
        return self.link_above - len(self.stages) if self._is_chain else self.link_above - 1

    @property
    def link_above(self) -> int:
        """Index of the link to which the process sends."""
        return self.stages[-1].index if self._is_chain else self.topology.process

    @property
    def _is_chain(self) -> bool:
        """Whether links connect stages. In a pipeline of backprop they connect processes."""
        return not self.topology.layout.is_pipelined

    def open_data(self, items: Iterable[BatchItem]) -> DataInputs:
        """Loads the data set and returns an iterator over the batches `items`.

        In a new run, also computes the weights that are a function of training images.
        """
        schedule, seed = self.plan.schedule, self.plan.config.seed
        data = self.source.load()
        if not self.done:
            fit_first_layer(self.plan, data, self.stages[0])
        return DataInputs(data, schedule, items, seed, self.device)

    def open_inputs(self, items: Iterator[BatchItem]) -> Inputs:
        """The batches `items`: from the data set in stage 0, otherwise from the process below."""
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

    def open_receiver_from_above(self, items: Iterator[BatchItem], depth: int) -> Receiver | None:
        """The messages down about the batches `items`, from the process above; None in the last
        process.

        Args:
            depth: number of message slots.
        """
        if self.group.from_above is None:
            return None
        link = self.link_above
        formats = self.plan.formats(link, Direction.DOWN)
        name = f"link {link + 1} -> {link}"
        return Receiver(
            self.group.from_above, formats, items, depth, self.device.torch_device, name
        )

    def open_sender_to_below(self) -> Sender | None:
        """The messages down to the process below; None in the first process."""
        if self.group.to_below is None:
            return None
        formats = self.plan.formats(self.link_below, Direction.DOWN)
        return Sender(self.group.to_below, formats, self.device.torch_device)

    def extras(self, emission: Emission) -> dict[str, Tensor]:
        """The extra tensors of a message, in the dtype and strides of the link."""
        fields = self.plan.extras(emission.stage)
        if not fields:
            return {}
        names = tuple(field.name for field in fields)
        filled = self.method.outgoing(replace(emission, names=names))
        return {field.name: field.normalise(filled[field.name]) for field in fields}

    def message(self, arrival: Arrival, stage: int, features: Tensor) -> dict[str, Tensor]:
        """The parts of the message that `stage` sends for the batch `arrival`."""
        features = features.detach()
        emission = Emission(stage, arrival.batch, features, arrival.labels, arrival.extras)
        return {LABELS: arrival.labels, ACTIVATIONS: features, **self.extras(emission)}


class Method(ABC):
    """How the stages of a chain learn.

    The defaults describe decoupled greedy learning: every stage has a head and learns from its own
    loss in every step. To change modules, messages or the local objective, derive a new method from
    `dglpipe.methods.Dgl`. To change the runner as well, derive the method from this class.

    Args:
        settings: the group `method` of the configuration.
    """

    flows_back: ClassVar[bool] = False
    """Whether gradients flow back, so that stages above stage 0 compute an input gradient."""
    auxiliary_reads_output: ClassVar[bool] = False
    """Whether the auxiliary modules read the output of a stage for every `head.reads`."""
    replays_forward: ClassVar[bool] = False
    """Whether a stage runs the forward of every batch twice."""
    trains_in_rounds: ClassVar[bool] = False
    """Whether round r trains only stage r, with the stages below frozen."""
    measures: ClassVar[bool] = False
    """Whether the runner passes the probe batch through the stages (`probe.every`)."""
    survives_alone: ClassVar[bool] = False
    """Whether stages go on while a stage is started again (`on_failure=restart_stage`)."""
    learns_locally: ClassVar[bool] = True
    """Whether every stage has a local objective (`local`)."""

    def __init__(self, settings: MethodConfig) -> None:
        self.settings = settings
        self.local: Sequence[LocalObjective] = ()
        """The local objective of every stage. `build_method` sets it."""

    @property
    def name(self) -> str:
        """The name in error messages and in the summary."""
        return self.settings.name

    def placement(self, pipeline: PipelineConfig, given: int | None) -> Placement:
        """The number of stages and processes, and the kind of their placement.

        Args:
            given: world size / R of an outside launcher; None: no outside launcher.

        Raises:
            ConfigError: the method does not support the numbers.
        """
        stages = pipeline.stages or given or 2
        return Placement(stages, pipeline.processes or given or stages)

    def rounds(self, stages: int) -> int:
        """Number of passes through all epochs in a run of `stages` stages."""
        return stages if self.trains_in_rounds else 1

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Checks that the settings fit each other, before any process starts.

        Raises:
            ConfigError: the settings do not fit.
        """
        del config, layout, schedule

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """Builders of the auxiliary modules of the stage below `boundary`, by name.

        The module `head` maps features to logits (B, N). Every other module takes the features
        as its first argument. The names are key prefixes in the stage's file of weights. The
        package seeds each module by (seed, name, boundary), so that its weights do not depend on
        K or P. The last stage has no auxiliary modules: it ends in the network's own classifier.
        """
        return self.local[boundary.stage].auxiliary(boundary)

    def auxiliary_kind(self, stage: int) -> str:
        """Equal for stages whose auxiliary modules are equal at equal cuts, for equal heads."""
        is_own = type(self).auxiliary is not Method.auxiliary
        return str(stage) if is_own else self.local[stage].kind

    @property
    def watches_branches(self) -> bool:
        """Whether a local objective reads the residual branches of its stage."""
        return any(one.watches_branches for one in self.local)

    @property
    def carries_weights(self) -> bool:
        """Whether the runner carries the weights down that an objective asks for (`local=man`)."""
        return False

    def reads_output(self, stage: int) -> bool:
        """Whether the auxiliary modules of `stage` read its output for every `head.reads`."""
        return self.auxiliary_reads_output or self.local[stage].copies_following

    def copies_following(self, stage: int) -> bool:
        """Whether the auxiliary modules of `stage` copy the first segment of the next stage."""
        return self.local[stage].copies_following

    def prepare(self, stage: int, segments: nn.Module) -> None:
        """Switches the measurement of residual branches off in stages that do not read them."""
        for branch in branch_costs(segments):
            branch.is_active = self.local[stage].watches_branches

    @property
    def objective(self) -> Objective | None:
        """The local objective of every stage; None: the objective in `local`."""
        return None

    def learning(self, stage: int, label_smoothing: float) -> Learning:
        """Loss and local objective of `stage`.

        Raises:
            ConfigError: the loss cannot be built.
        """
        local = self.local[stage]
        smoothing, key = local.settings.label_smoothing, "local.label_smoothing"
        if smoothing is None:
            smoothing, key = label_smoothing, "label_smoothing"
        loss = build_loss(self.settings.loss, smoothing, key)
        return Learning(loss, self.objective or local.objective)

    def messages(self, link: int, spec: PipelineSpec) -> tuple[Field, ...]:
        """The tensors of the messages between stage `link` and stage `link + 1`, in order.

        A method that needs further tensors adds fields to this list and fills the tensors in
        `outgoing`. Each field has a name, dtype, row shape, direction and phases.
        """
        labels = contiguous_field(LABELS, torch.int64, ())
        exits = contiguous_field(ENSEMBLE, torch.float32, (spec.classes,), phases=[Phase.TEST])
        read = {field.name: field for one in self.local[link + 1 :] for field in one.fields(spec)}
        down = self.local[link].fields_down(spec)
        return labels, exits, spec.fields[link], *read.values(), *down

    def outgoing(self, emission: Emission) -> Mapping[str, Tensor]:
        """The declared extra tensors of a training message, by name, each (B, ...)."""
        fills = {name: fill for one in self.local for name, fill in one.fills.items()}
        return {
            name: emission.extras[name] if name in emission.extras else fills[name](emission)
            for name in emission.names
            if name in fills
        }

    def extra_bytes(self, link: int, spec: PipelineSpec) -> int:
        """Bytes per row of the extra tensors that stage `link` sends up in training."""
        return extra_row_bytes(self.messages(link, spec))

    def down_bytes(self, link: int, spec: PipelineSpec, rows: int) -> int:
        """Bytes per row that stage `link` + 1 sends down, with `rows` rows a step."""
        return down_row_bytes(self.messages(link, spec), rows)

    def most_extra_bytes(self, link: int) -> int:
        """Upper limit of the part of `extra_bytes` that local objectives need, for every cut."""
        return max((one.extra_bytes for one in self.local[link + 1 :]), default=0)

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        """The memory of a link.

        Args:
            link: index of the stage below the link.
            depth: D (`pipeline.depth`).
        """
        del link
        return LinkBuffers(sender=1, receiver=depth)

    def delay(self, stage: int, stages: int) -> int | None:
        """Steps between the step that a message of the stage above is about and the step in which
        `stage` uses it; None: no messages come down."""
        return self.local[stage].lag if stage < stages - 1 else None

    def stash(self, stage: int, stages: int) -> Stash:
        """What `stage` keeps of the batches between these steps."""
        from_above = self.local[stage].copies_under_way if stage < stages - 1 else 0
        to_below = self.local[stage - 1].copies_under_way if stage else 0
        return Stash(copies_from_above=from_above, copies_to_below=to_below)

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """Fraction of a batch whose activations `stage` keeps for backward at the same time."""
        del stage, stages
        return Fraction(1)

    def utilization(self, layout: Layout) -> float:
        """Upper bound of the fraction of a step in which a process computes, without link cost.

        1 for local learning, which has no pipeline bubbles, unless a stage waits for weights.
        """
        owners = [set(layout.at(rank).stages) for rank in range(layout.processes)]
        tops = (max(own) for own in owners if max(own) < layout.stages - 1)
        return min((self.local[j].utilization for j in tops), default=1.0)

    @abstractmethod
    def runner(self, context: RunContext) -> Runner:
        """The runner of one process."""
