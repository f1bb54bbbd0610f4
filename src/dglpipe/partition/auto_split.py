"""`pipeline.split`, `cost` and `memory_limit` become the first segment of every stage."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from torch import nn

from dglpipe.config import Config, HeadConfig, PipelineConfig, PluginConfig
from dglpipe.data import DataInfo
from dglpipe.errors import ConfigError
from dglpipe.host import keep_freed_memory
from dglpipe.models import build_network
from dglpipe.models.features import Features
from dglpipe.models.heads import check_head, head_on
from dglpipe.models.meta import building
from dglpipe.partition.balance import Costs, balanced, stage_costs
from dglpipe.partition.channels import channels_at
from dglpipe.partition.flops import HeadAt, SegmentFlops, Shape, flop_costs, link_bytes
from dglpipe.partition.memory import (
    Limit,
    Needs,
    Piece,
    head_pieces,
    optimizer_state,
    segment_pieces,
)
from dglpipe.partition.profiling import Times, measure, threads
from dglpipe.partition.segments import TracedNetwork, trace
from dglpipe.partition.shape_prop import propagate_shapes
from dglpipe.partition.split import boundaries
from dglpipe.pipeline.device import Device
from dglpipe.seeds import derive


def choose_bounds(
    config: Config,
    data: DataInfo,
    stages: int,
    traced: TracedNetwork,
    work: SegmentFlops,
    rows: int | None,
) -> list[int]:
    """First segment of every stage, as `config.pipeline` wants it.

    Args:
        stages: K.
        traced: the network of `config`, on meta.
        work: of its segments.
        rows: of a step on one replica, for `memory_limit`; None: that is not looked at.

    Raises:
        ConfigError: more stages than segments, a list that does not fit, a stage that needs
            more memory than the limit; `cost=time` without `times`, or with another network's.
    """
    names, split = [segment.name for segment in traced.segments], config.pipeline.split
    # `even` in place of `auto` for its refusal of too many stages.
    bounds = boundaries("even" if split == "auto" else split, len(names), stages, names)
    if config.pipeline.cost == "time" and config.pipeline.times is not None:
        _check_times(config.pipeline, len(names), stages)
    limit = _limit(config, data, traced, rows, stages)
    if split != "auto":
        if limit is not None:
            limit.check(bounds, "pipeline.split=auto looks for a cut that fits")
        return bounds
    refused: dict[int, ConfigError] = {}
    costs = network_costs(config, data, traced, work, stages, refused)
    joined = traced.joined
    if stages > len(names) - len(joined):
        allowed = f"at most {len(names) - len(joined)}: tensors are shared by segments"
        raise ConfigError(
            "pipeline.stages", stages, allowed, f"No cut in front of {sorted(joined)}"
        )

    def may(_stage: int, first: int, end: int) -> bool:
        return first not in joined and end not in joined

    def fits(j: int, first: int, end: int) -> bool:
        return may(j, first, end) and (limit is None or limit.fits(j, first, end))

    found = balanced(costs, fits)
    if found is None and limit is not None:
        hint = "It is the cut that comes nearest: take more stages or a smaller batch"
        limit.check(limit.nearest(may), hint)
    assert found is not None, "what does not fit has been refused"
    if math.inf in stage_costs(costs, found):
        raise _headless(costs, refused)
    return found


def _headless(costs: Sequence[Costs], refused: Mapping[int, ConfigError]) -> ConfigError:
    """Why no cut can have its heads: first the stage whose head fits nowhere.

    Args:
        refused: by stage, as `network_costs` gives it.
    """
    nowhere = [j for j, own in enumerate(costs) if set(own.heads) == {math.inf}]
    for j in (*nowhere, *refused):
        if j in refused:
            return refused[j]
    allowed = "a number of stages for which every cut can have its head"
    return ConfigError("pipeline.stages", len(costs), allowed)


def _limit(
    config: Config, data: DataInfo, traced: TracedNetwork, rows: int | None, stages: int
) -> Limit | None:
    """`pipeline.memory_limit`, where there is one and it is looked at."""
    size = config.pipeline.memory_bytes
    if size is None or rows is None:
        return None
    needs = memory_needs(config, data, traced, rows, stages)
    return Limit(size, tuple(needs), own=any(config.per_stage))


def network_costs(
    config: Config,
    data: DataInfo,
    traced: TracedNetwork,
    work: SegmentFlops,
    stages: int,
    refused: dict[int, ConfigError] | None = None,
) -> list[Costs]:
    """Of stage j, with the settings that it has, wherever the network is cut: every segment and
    the head of every cut, in FLOPs a sample or in seconds a step.

    Args:
        traced: on meta.
        work: of its segments.
        stages: K.
        refused: gets, by stage, what is wrong with a head of it that cannot be; such a cut costs
            infinitely much.

    Raises:
        ConfigError: `cost=time` without `times`.
    """
    if config.pipeline.cost == "time":
        return timed_costs(config, stages, work.shapes)
    known: dict[str, tuple[Costs, list[ConfigError]]] = {}
    result = []
    for j in range(stages):
        head, item_bytes = _head_of(config, j, stages), config.stage(j).precision.item_bytes
        kind = f"{head} {item_bytes}"
        if kind not in known:
            errors: list[ConfigError] = []
            head_at = _heads(config, head, data, traced, meta=True, refused=errors)
            costs = flop_costs(work, head_at, item_bytes)
            known[kind] = method_costs(config, costs), errors
        result.append(known[kind][0])
        if refused is not None and known[kind][1]:
            refused[j] = known[kind][1][0]
    return result


def _head_of(config: Config, j: int, stages: int) -> HeadConfig | PluginConfig:
    """Of stage `j`; the last has none: as if it were that of the stage below it."""
    return config.stage(min(j, max(stages - 2, 0))).head


def timed_costs(config: Config, stages: int, shapes: Sequence[Shape] = ()) -> list[Costs]:
    """Seconds a step of stage j, as `pipeline.times` has them.

    Args:
        stages: K.
        shapes: of a row at the entrance of every segment, for what crosses the links.

    Raises:
        ConfigError: there are none.
    """
    if config.pipeline.times is None:
        allowed = "flops, where nothing can be measured"
        raise ConfigError("pipeline.cost", "time without pipeline.times", allowed)
    result = []
    for j in range(stages):
        links = link_bytes(shapes, config.stage(j).precision.item_bytes)
        costs = measured_costs(config.pipeline.times_of(j), links)
        result.append(method_costs(config, costs))
    return result


def _check_times(pipeline: PipelineConfig, count: int, stages: int) -> None:
    """Refuses those of another number of stages, or of a network without `count` segments."""
    times, hint = pipeline.times, "null: they are measured"
    if isinstance(times, list) and len(times) != stages:
        allowed = f"{stages} entries, one a stage, or one for all"
        raise ConfigError("pipeline.times", f"{len(times)} entries", allowed, hint)
    wanted = {"segments": count, "input_gradients": count, "heads": count - 1}
    for j in range(stages):
        counts = {key: len(values) for key, values in pipeline.times_of(j).items()}
        if counts != wanted:
            key = f"pipeline.times[{j}]" if isinstance(times, list) else "pipeline.times"
            raise ConfigError(key, counts, f"{wanted} of this network", hint)


def method_costs(config: Config, costs: Costs) -> Costs:
    """`costs` as the method of `config` has them."""
    return costs if config.method.local else costs.without_heads()


def measured_costs(times: Mapping[str, Sequence[float]], links: Sequence[int] = ()) -> Costs:
    """Costs of the form of `pipeline.times`, in seconds a step."""
    return Costs(links=tuple(links), **{key: tuple(values) for key, values in times.items()})


def measure_times(
    config: Config, data: DataInfo, device: Device, threads_: int, rows: int, stages: int
) -> list[Times]:
    """Builds the network of `config` for real and times its segments on `device`, with the
    settings of stage j; of each kind once."""
    keep_freed_memory()  # as the processes of the run do
    with building(False, derive(config.seed, "network")):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    traced = trace(network)
    shape = (data.channels, data.height, data.width)
    known: dict[str, Times] = {}
    result = []
    with threads(threads_):
        for j in range(stages):
            own, head = config.stage(j), _head_of(config, j, stages)
            # How long a step takes does not depend on its learning rate; clipping is not measured.
            optimizer = dataclasses.replace(own.optimizer, lr=1.0, clip=None)
            kind = f"{head if config.method.local else ''} {optimizer} {own.precision}"
            if kind not in known:
                head_at = _heads(config, head, data, traced, meta=False)
                known[kind] = measure(traced, shape, head_at, own, device, rows)
            result.append(known[kind])
    return result


def memory_needs(
    config: Config, data: DataInfo, traced: TracedNetwork, rows: int, stages: int
) -> list[Needs]:
    """Of stage j, wherever the network is cut, with the settings that it has.

    Args:
        traced: on meta.
        rows: of a step on one replica.
        stages: K.
    """
    shapes = entrances(data, traced)
    segments = segment_pieces([traced.piece(at) for at in range(len(shapes))], shapes[0])
    heads = _stage_heads(config, data, traced, shapes, stages)
    result = []
    for j in range(stages):
        own = config.stage(j)
        item_bytes = own.precision.item_bytes
        result.append(
            Needs(
                segments=segments,
                heads=heads[j],
                links=link_bytes(shapes, item_bytes),
                state=optimizer_state(own.optimizer),
                rows=rows,
                received=_received(config, j) / item_bytes,
                sent=config.method.sends(j, config.pipeline.depth) if j < stages - 1 else 0,
                item_bytes=item_bytes,
                held=config.method.held(j, stages),
            )
        )
    return result


def _received(config: Config, j: int) -> int:
    """Bytes of the memory for what comes to stage `j`, for each number of a row."""
    if j == 0:
        return 0
    item_bytes = config.stage(j - 1).precision.item_bytes
    return config.method.receives(j - 1, config.pipeline.depth, item_bytes, item_bytes)


def _stage_heads(
    config: Config, data: DataInfo, traced: TracedNetwork, shapes: Sequence[Shape], stages: int
) -> list[tuple[Piece, ...]]:
    """The heads of all cuts, of the kind of stage j; of each kind looked at once."""
    wanted = [config.stage(j).head for j in range(stages)]
    known: dict[str, tuple[Piece, ...]] = {}
    for head in wanted:
        if repr(head) not in known:
            head_at = _heads(config, head, data, traced, meta=True)
            modules = [head_at(at, shape) for at, shape in enumerate(shapes) if at]
            known[repr(head)] = head_pieces(modules, shapes[1:])
    return [known[repr(head)] for head in wanted]


def entrances(data: DataInfo, traced: TracedNetwork) -> list[Shape]:
    """Shape of a row at the entrance of every segment."""
    shape = (data.channels, data.height, data.width)
    return [shape, *(one[1:] for one in propagate_shapes(traced, (2, *shape))[:-1])]


def _heads(
    config: Config,
    wanted: HeadConfig | PluginConfig,
    data: DataInfo,
    traced: TracedNetwork,
    meta: bool,
    refused: list[ConfigError] | None = None,
) -> HeadAt:
    """The head `wanted` for the cut in front of a segment, where there can be one."""
    if not config.method.local:
        return lambda _segment, _row: nn.Identity()
    classes = len(data.classes)

    @functools.cache
    def head_for(features: Features) -> nn.Module | None:
        try:
            with building(True, 0):
                head = head_on(wanted, features, classes)
            if isinstance(wanted, PluginConfig):
                check_head(head, features.shape, classes)
            if not meta:
                with building(False, 0):
                    head = head_on(wanted, features, classes)
        except ConfigError as error:
            if refused is not None:
                refused.append(error)
            return None
        return head

    starts = traced.starts
    return lambda segment, row: head_for(
        Features(row, channels_at(traced.operations, starts[segment], row))
    )
