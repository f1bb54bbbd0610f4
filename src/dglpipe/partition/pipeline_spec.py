"""A network cut into stages with their heads: on paper (meta) or for real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.errors import ConfigError
from dglpipe.models import build_network
from dglpipe.models.features import Features
from dglpipe.models.heads import head_on
from dglpipe.models.meta import NeedsValuesError, ShapesOnly, building, example, looking
from dglpipe.partition.auto_split import choose_bounds, entrances
from dglpipe.partition.channels import channels_at
from dglpipe.partition.flops import SegmentFlops
from dglpipe.partition.segments import trace
from dglpipe.partition.split import boundaries, check_stages, cut
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import (
    ACTIVATIONS,
    ENSEMBLE,
    LABELS,
    Field,
    MessageFormat,
    contiguous_field,
    recorded_field,
)
from dglpipe.pipeline.stage import StageModule, admit
from dglpipe.pipeline.weights import clashes
from dglpipe.seeds import derive

CPU = Device(torch.device("cpu"), "gloo")

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a stage of each precision hands on."""


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """The stages of a run before they belong to processes.

    Attributes:
        bounds: first segment of every stage.
        segments: names of the segments, by stage.
        modules: the stages' parts of the network, under the network's own keys.
        fields: what each stage but the last hands on.
        channels_at: which dimension of a row of it holds the channels.
    """

    config: Config
    data: DataInfo
    bounds: tuple[int, ...]
    segments: tuple[tuple[str, ...], ...]
    modules: tuple[nn.Module, ...]
    fields: tuple[Field, ...]
    channels_at: tuple[int, ...]
    work: SegmentFlops | None
    """Of the segments; only on meta."""

    meta: bool
    """Whether its weights are not there: on paper, unless the network looks at values."""

    def learner(self, j: int) -> StageModule:
        """Stage `j` with its head; the head's weights depend on the seed and on where the
        cut is, not on the number of stages."""
        if j == len(self.modules) - 1:
            return StageModule(self.modules[j], None)
        if not self.config.method.local:
            return StageModule(self.modules[j], None, is_exit=False)
        features = Features(self.fields[j].shape, self.channels_at[j])
        with building(self.meta, derive(self.config.seed, "head", self.bounds[j + 1])):
            head = head_on(self.config.stage(j).head, features, len(self.data.classes))
        return StageModule(self.modules[j], head)

    def precision(self, j: int) -> str:
        """Of stage `j`, by name."""
        return self.config.stage(j).precision.name

    def flops(self, j: int) -> int:
        """Of forward and backward of stage `j` with its head, for one sample; only on meta."""
        return self.own_flops(j) + self.head_flops(j, self.learner(j).head)

    def own_flops(self, j: int) -> int:
        """The same without the head."""
        assert self.work is not None
        end = sum(map(len, self.segments[: j + 1]))
        flows_back = j > 0 and not self.config.method.local
        return self.work.stage(self.bounds[j], end, flows_back)

    def head_flops(self, j: int, head: nn.Module | None) -> int:
        """Of the head of stage `j`, with the gradient of its input; 0 where there is none."""
        assert self.work is not None
        return 0 if head is None else self.work.head(head, self.fields[j].shape)

    def check_logits(self) -> None:
        """Sends two rows through every head and the last stage, on paper.

        Raises:
            ConfigError: something else comes out than logits (B, N).
        """
        wanted = (2, len(self.data.classes))
        for j in range(len(self.modules)):
            learner = self.learner(j)
            if not learner.is_exit:
                continue
            if learner.head is None:
                key, exit_, shape = "model", learner.segments, self.input_shape(j)
            else:  # its features have been seen
                key, exit_, shape = "head", learner.head, self.fields[j].shape
            paper = next(learner.parameters()).device
            batch = example((2, *shape), paper)
            try:
                with torch.no_grad(), looking(paper):
                    logits = exit_(batch)
            except Exception as error:  # whatever a user's head does
                kind = type(exit_).__name__
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                allowed = f"one that works on features {shape} a row (stage {j})"
                raise ConfigError(key, kind, allowed, reason) from error
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            if came != wanted:
                raise ConfigError(key, came, f"logits {wanted} for 2 rows (stage {j})")
            same = clashes(learner)
            if same:
                allowed = "networks whose own keys are not those of a head, `head.` + key"
                raise ConfigError("model", f"the key {same[0]} in stage {j}", allowed)

    def row_bytes(self, j: int) -> int:
        """Of the activations that stage `j` hands on; 0 for the last."""
        return self.fields[j].row_bytes if j < len(self.fields) else 0

    def input_shape(self, j: int) -> tuple[int, ...]:
        """Shape of one row at the entrance of stage `j`."""
        return self.fields[j - 1].shape if j else image_shape(self.data)

    def label_layouts(self, plan: BatchSchedule) -> dict[Phase, MessageFormat]:
        """The messages from process to process of pipelined backprop, whose activations go
        another way: the labels alone."""
        labels = contiguous_field(LABELS, torch.int64, ())
        nothing = contiguous_field(ACTIVATIONS, torch.uint8, (0,))
        return {
            phase: MessageFormat(plan.largest_rows(phase), (labels, nothing)) for phase in Phase
        }

    def layouts(self, j: int, plan: BatchSchedule) -> dict[Phase, MessageFormat]:
        """The messages from stage `j` to stage `j + 1`."""
        labels = contiguous_field(LABELS, torch.int64, ())
        ensemble = contiguous_field(ENSEMBLE, torch.float32, (len(self.data.classes),))
        activations = self.fields[j]
        rows = {phase: plan.largest_rows(phase) for phase in Phase}
        return {
            Phase.TRAIN: MessageFormat(rows[Phase.TRAIN], (labels, activations)),
            Phase.TEST: MessageFormat(rows[Phase.TEST], (labels, ensemble, activations)),
        }


def image_shape(data: DataInfo) -> tuple[int, int, int]:
    """(C, H, W)"""
    return data.channels, data.height, data.width


def build_spec(
    config: Config,
    data: DataInfo,
    stages: int,
    meta: bool = False,
    rows: int | None = None,
) -> PipelineSpec:
    """Builds the network of `config`, a function of its seed alone, and cuts it.

    Args:
        stages: K.
        meta: without memory for the weights, to check a configuration or to count.
        rows: of a step on one replica, on meta: what `pipeline.memory_limit` is checked for.

    Raises:
        ConfigError: a network that cannot be built or cut so, or images that do not fit it.
    """
    check_per_stage(config, stages)
    try:
        return _draw(config, data, stages, meta, rows)
    except NeedsValuesError:
        return _draw(config, data, stages, meta, rows, values=True)


def _draw(
    config: Config,
    data: DataInfo,
    stages: int,
    paper: bool,
    rows: int | None,
    values: bool = False,
) -> PipelineSpec:
    meta = paper and not values
    with building(meta, derive(config.seed, "network")):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    network = network.to(memory_format=torch.channels_last)
    traced = trace(network)
    names = [segment.name for segment in traced.segments]
    check_stages(traced, stages)
    work = None
    if paper:
        work = SegmentFlops(traced, entrances(data, traced))
        bounds = choose_bounds(config, data, stages, traced, work, rows)
    elif config.pipeline.split == "auto":
        bounds = list(build_spec(config, data, stages, meta=True).bounds)
    else:
        bounds = boundaries(config.pipeline.split, len(names), stages, names)
    modules = cut(traced, bounds)
    ends = [*bounds[1:], len(names)]
    fields = _record(config, modules, image_shape(data), meta)
    return PipelineSpec(
        config=config,
        data=data,
        bounds=tuple(bounds),
        segments=tuple(tuple(names[a:b]) for a, b in zip(bounds, ends, strict=True)),
        modules=tuple(modules),
        fields=fields,
        channels_at=tuple(
            channels_at(traced.operations, traced.starts[bound], field.shape)
            for bound, field in zip(bounds[1:], fields, strict=True)
        ),
        work=work,
        meta=meta,
    )


def check_per_stage(config: Config, stages: int) -> None:
    """Refuses settings of single stages of which there are not as many as stages."""
    count = len(config.per_stage)
    if count not in (0, stages):
        allowed = f"a list of {stages} entries, one a stage, or an empty one"
        raise ConfigError("per_stage", f"{count} entries", allowed)


def _record(
    config: Config, modules: Sequence[nn.Module], shape: tuple[int, ...], meta: bool
) -> tuple[Field, ...]:
    """What each stage hands on, seen in one forward of 2 rows."""
    device = torch.device("meta" if meta else "cpu")
    batch: Tensor = torch.zeros(2, *shape, device=device)
    batch = batch.to(memory_format=torch.channels_last)
    fields = []
    for j, module in enumerate(modules[:-1]):
        precision = config.stage(j).precision.name
        # On meta only shapes count, and there is no autocast.
        context = ShapesOnly() if meta else CPU.autocast(precision)
        module.eval()
        with torch.no_grad(), context:
            batch = module(batch if meta else admit(batch, precision))
        module.train()
        fields.append(recorded_field(ACTIVATIONS, WIRE[precision], batch))
        batch = batch.to(WIRE[precision]) if not meta else batch
    return tuple(fields)
