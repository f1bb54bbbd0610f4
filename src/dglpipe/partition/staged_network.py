"""The network of a run, cut into stages: on the meta device, or with weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from dglpipe.config import BEFORE_POOL, Config
from dglpipe.data import DataInfo
from dglpipe.errors import ConfigError
from dglpipe.models import build_network
from dglpipe.models.features import SegmentForm
from dglpipe.models.heads import check_output
from dglpipe.models.meta import NeedsValuesError, building
from dglpipe.partition.auto_split import choose_bounds
from dglpipe.partition.channels import channels_at
from dglpipe.partition.cut_problem import CutProblem, image_shape
from dglpipe.partition.following import following_form, own_followings
from dglpipe.partition.layers import network_layers
from dglpipe.partition.machine_memory import MachineLoad, require_memory, require_one_segment
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.partition.profiling import cpu_threads
from dglpipe.partition.record_fields import record_fields, record_fields_on_meta
from dglpipe.partition.segments import TracedNetwork, trace
from dglpipe.partition.shape_prop import last_channels, propagate_shapes, row_before_pools
from dglpipe.partition.split import boundaries, check_stages, cut
from dglpipe.partition.stage_method import StageMethod
from dglpipe.partition.stage_modules import build_auxiliary, split_read, stage_module
from dglpipe.pipeline.message import Field
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.pipeline.weights import clashes
from dglpipe.seeds import derive


@dataclass(frozen=True, slots=True)
class StagedNetwork:
    """A network cut into stages.

    Attributes:
        modules: the segments of every stage, under the network's own `state_dict` keys.
        pools: the pools at the end of every stage, which are not in `modules`; None: there are
            none, or the auxiliary modules read the output of the stage.
        followings: the first segment of the stage above, for every stage whose auxiliary modules
            copy it.
        meta: whether parameters and buffers are on meta.
        problem: costs and memory of the segments; None unless built by `meta=True`.
    """

    spec: PipelineSpec
    config: Config
    method: StageMethod
    modules: tuple[nn.Module, ...]
    pools: tuple[nn.Module | None, ...]
    followings: Mapping[int, nn.Module]
    meta: bool
    problem: CutProblem | None

    def auxiliary(self, j: int) -> dict[str, nn.Module]:
        """New auxiliary modules of stage `j`, by name."""
        following = self.followings.get(j)
        return build_auxiliary(self.config, self.method, self.spec, j, following, self.meta)

    def learner(self, j: int) -> StageModule:
        """Stage `j` with new auxiliary modules."""
        is_last = j == self.spec.stages - 1
        self.method.prepare(j, self.modules[j])
        return stage_module(self.modules[j], self.auxiliary(j), is_last, self.pools[j])

    def precision(self, j: int) -> str:
        """Name of the precision of stage `j`."""
        return self.config.stage(j).precision.name

    def flops(self, j: int) -> int:
        """FLOPs per sample of stage `j`: forward and backward, with auxiliary modules.

        Like the next two methods, only for a network built with `meta=True`.
        """
        return self.segment_flops(j) + self.auxiliary_flops(j)

    def segment_flops(self, j: int) -> int:
        """FLOPs of the segments of stage `j`."""
        flows_back = j > 0 and self.method.flows_back
        return self.require_problem().flops.stage(
            *self.spec.span(j), flows_back, self.method.replays_forward and j < self.spec.stages - 1
        )

    def auxiliary_flops(self, j: int) -> int:
        """FLOPs of the auxiliary modules of stage `j`, with the gradient of their input."""
        modules = self.auxiliary(j).values()
        if not modules:
            return 0
        return self.require_problem().flops.auxiliary(modules, self.spec.read_row(j))

    def require_problem(self) -> CutProblem:
        """`problem`, which must not be None."""
        assert self.problem is not None, "build_staged_network(..., meta=True) counts FLOPs"
        return self.problem

    def check_outputs(self) -> None:
        """Runs two rows through all auxiliary modules and the last stage.

        Raises:
            ConfigError: a module fails, an exit does not return logits (B, N), or the network and
                an auxiliary module have the same key.
        """
        for j in range(self.spec.stages):
            where, auxiliary = f" (stage {j})", self.auxiliary(j)
            device = next(self.modules[j].parameters()).device
            is_last = j == self.spec.stages - 1
            modules = {"model": self.modules[j]} if is_last else auxiliary
            shape = self.spec.input_shape(j) if is_last else self.spec.read_row(j)
            hint = "" if is_last else self.spec.read_hint(j)
            for name, module in modules.items():
                check_output(name, module, shape, self.spec.classes, device, where, hint)
            same = clashes(stage_module(self.modules[j], auxiliary, is_last, self.pools[j]))
            if same:
                allowed = "networks without the keys of a head, `head.` + key"
                raise ConfigError("model", f"the key {same[0]} in stage {j}", allowed)


def build_staged_network(
    config: Config,
    method: StageMethod,
    data: DataInfo,
    stages: int,
    meta: bool = False,
    rows: int | None = None,
    load: MachineLoad | None = None,
) -> StagedNetwork:
    """Builds the network of `config` and cuts it. The weights depend only on the seed.

    Args:
        stages: K.
        meta: build without weights, to check a configuration and to count costs.
        rows: rows per step on one replica, for `pipeline.memory_limit`; only with `meta`.
        load: the part of the run that this machine holds, which must fit into its memory; None:
            this is not checked; only with `meta`.

    Raises:
        ConfigError: the network cannot be built or cut in this way, does not fit the images, or
            does not fit into the memory of this machine.
    """
    check_per_stage(config, stages)
    if not meta:
        return _build(config, method, data, stages)
    try:
        return _build_counted(config, method, data, stages, rows, load, values=False)
    except NeedsValuesError:
        return _build_counted(config, method, data, stages, rows, load, values=True)


def check_per_stage(config: Config, stages: int) -> None:
    """Raises ConfigError unless `per_stage` has 0 or K entries."""
    count = len(config.per_stage)
    if count not in (0, stages):
        allowed = f"a list of {stages} entries, one per stage, or an empty list"
        raise ConfigError("per_stage", f"{count} entries", allowed)


def _build_counted(
    config: Config,
    method: StageMethod,
    data: DataInfo,
    stages: int,
    rows: int | None,
    load: MachineLoad | None,
    values: bool,
) -> StagedNetwork:
    """Builds a network with costs and memory of its segments.

    Args:
        values: build with weights, for a network that reads values of tensors.
    """
    traced = _trace_network(config, method, data, stages, meta=not values)
    problem = CutProblem(config, method, data, traced, stages)
    problem.require_fit()
    bounds = choose_bounds(problem, rows)
    require_one_segment(problem)
    if load is not None:
        require_memory(problem, bounds, load)
    return _assemble(config, method, data, traced, bounds, problem)


def _build(config: Config, method: StageMethod, data: DataInfo, stages: int) -> StagedNetwork:
    traced = _trace_network(config, method, data, stages, meta=False)
    if config.pipeline.split == "auto":
        counted = build_staged_network(config, method, data, stages, meta=True)
        bounds = list(counted.spec.bounds)
    else:
        names = [segment.name for segment in traced.segments]
        bounds = boundaries(config.pipeline.split, len(names), stages, names)
    return _assemble(config, method, data, traced, bounds)


def _trace_network(
    config: Config, method: StageMethod, data: DataInfo, stages: int, meta: bool
) -> TracedNetwork:
    with building(meta, derive(config.seed, "network")):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    network = network.to(memory_format=torch.channels_last)
    traced = trace(network, method.watches_branches)
    check_stages(traced, stages)
    return traced


def _assemble(
    config: Config,
    method: StageMethod,
    data: DataInfo,
    traced: TracedNetwork,
    bounds: Sequence[int],
    problem: CutProblem | None = None,
) -> StagedNetwork:
    modules = cut(traced, bounds)
    fields = _fields(config, method, data, traced, bounds, modules)
    width, before, following = _measured(traced, bounds, data)
    names = [segment.name for segment in traced.segments]
    ends = [*bounds[1:], len(names)]
    whole = PipelineSpec(
        bounds=tuple(bounds),
        segments=tuple(tuple(names[a:b]) for a, b in zip(bounds, ends, strict=True)),
        fields=fields,
        channels_at=tuple(
            channels_at(traced.operations, traced.starts[bound], field.shape)
            for bound, field in zip(bounds[1:], fields, strict=True)
        ),
        reads=(None,) * len(fields),
        image_shape=image_shape(data),
        classes=len(data.classes),
        width=width,
        layers=network_layers(traced, _rows(traced, data), width),
        following=following,
    )
    reads = [
        row if _reads_before_pool(config, method, whole, j) else None
        for j, row in enumerate(before)
    ]
    spec = replace(whole, reads=tuple(reads))
    pools = [split_read(module, spec, j) for j, module in enumerate(modules)]
    meta = traced.device.type == "meta"
    followings = own_followings(method, traced, bounds, range(len(bounds)))
    parts = tuple(modules), tuple(pools), followings
    return StagedNetwork(spec, config, method, *parts, meta, problem)


class _Measured(NamedTuple):
    """Sizes that are found by running parts of the network.

    Attributes:
        width: channels of the network's last map; None without a map.
        before: for every stage but the last, the shape of one row in front of the pools at its
            end; None without pools.
        following: as `PipelineSpec.following`.
    """

    width: int | None
    before: list[tuple[int, ...] | None]
    following: tuple[SegmentForm | None, ...]


def _measured(traced: TracedNetwork, bounds: Sequence[int], data: DataInfo) -> _Measured:
    # One thread: a process that is forked later must not inherit a pool of threads.
    with cpu_threads(1), _evaluating(traced.network):
        inputs = _rows(traced, data)
        before = [row_before_pools(traced, bound - 1, inputs[bound - 1]) for bound in bounds[1:]]
        following = tuple(following_form(traced, bound, inputs[bound]) for bound in bounds[1:])
        return _Measured(last_channels(traced, inputs[-1]), before, following)


def _rows(traced: TracedNetwork, data: DataInfo) -> list[tuple[int, ...]]:
    """Shape of one input row of every segment."""
    shape = image_shape(data)
    outputs = propagate_shapes(traced, (2, *shape))
    return [shape, *(output[1:] for output in outputs[:-1])]


def _reads_before_pool(config: Config, method: StageMethod, spec: PipelineSpec, j: int) -> bool:
    """Whether stage `j` has auxiliary modules that read in front of a pool at its end."""
    head = config.stage(j).head
    if head.reads != BEFORE_POOL or method.reads_output(j):
        return False
    return bool(method.auxiliary(spec.boundary(j, head)))


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Context in evaluation mode, so that a forward changes no running statistics."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _fields(
    config: Config,
    method: StageMethod,
    data: DataInfo,
    traced: TracedNetwork,
    bounds: Sequence[int],
    modules: Sequence[nn.Module],
) -> tuple[Field, ...]:
    shape = image_shape(data)
    with cpu_threads(1):
        if traced.device.type != "meta":
            return record_fields(config, modules, shape)
        try:
            return record_fields_on_meta(config, traced, bounds, shape)
        except Exception:  # the forward needs its real weights
            real = _trace_network(config, method, data, len(bounds), meta=False)
            return record_fields(config, cut(real, bounds), shape)
