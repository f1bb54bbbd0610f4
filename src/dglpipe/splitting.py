"""`pipeline.split`, `cost` and `memory_limit` become the first segment of every stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from torch import nn

from dglpipe.allocator import keep_memory
from dglpipe.balance import Costs, balanced
from dglpipe.config import Config, HeadConfig, PlugInConfig
from dglpipe.costs import HeadAt, Shape, Work, flop_costs, link_bytes
from dglpipe.data import DataDescription
from dglpipe.device import Device
from dglpipe.errors import ConfigError
from dglpipe.features import Features, channels_at
from dglpipe.heads import check_head, head_on
from dglpipe.memory import Limit, Needs, Piece, head_pieces, optimizer_state, segment_pieces
from dglpipe.models import build_network
from dglpipe.models.building import building
from dglpipe.paper import check_input
from dglpipe.partition import Traced, boundaries, trace
from dglpipe.seeds import derive
from dglpipe.timing import Times, measure, threads


def choose_bounds(
    config: Config,
    data: DataDescription,
    stages: int,
    traced: Traced,
    work: Work,
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
        _check_times(config.pipeline.times, len(names))
    limit = _limit(config, data, traced, rows, stages)
    if split != "auto":
        if limit is not None:
            limit.check(bounds, "pipeline.split=auto looks for a cut that fits")
        return bounds
    refused: list[ConfigError] = []
    costs = network_costs(config, data, traced, work, refused)
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

    found = balanced(costs, stages, fits)
    if found is None and limit is not None:
        hint = "It is the cut that comes nearest: take more stages or a smaller batch"
        limit.check(limit.nearest(may), hint)
    assert found is not None, "what does not fit has been refused"
    if math.inf in costs.stages(found):
        allowed = "a number of stages for which every cut can have its head"
        raise refused[0] if refused else ConfigError("pipeline.stages", stages, allowed)
    return found


def _limit(
    config: Config, data: DataDescription, traced: Traced, rows: int | None, stages: int
) -> Limit | None:
    """`pipeline.memory_limit`, where there is one and it is looked at."""
    size = config.pipeline.memory_bytes
    if size is None or rows is None:
        return None
    needs = memory_needs(config, data, traced, rows, stages)
    return Limit(size, tuple(needs), own=any(config.per_stage))


def network_costs(
    config: Config,
    data: DataDescription,
    traced: Traced,
    work: Work,
    refused: list[ConfigError] | None = None,
) -> Costs:
    """Of every segment and of the head of every cut: FLOPs a sample, or seconds a step.

    The heads are those of `head`; `per_stage` is left aside, for it belongs to stages that
    are not there yet.

    Args:
        traced: on meta.
        work: of its segments.
        refused: gets what is wrong with heads that cannot be; such a cut costs infinitely much.

    Raises:
        ConfigError: `cost=time` without `times`.
    """
    links = link_bytes(work.shapes, config.precision.item_bytes)
    if config.pipeline.cost == "flops":
        head_at = _heads(config, config.head, data, traced, meta=True, refused=refused)
        return method_costs(config, flop_costs(work, head_at, config.precision.item_bytes))
    if config.pipeline.times is None:
        allowed = "flops, where nothing can be measured"
        raise ConfigError("pipeline.cost", "time without pipeline.times", allowed)
    return method_costs(config, measured_costs(config.pipeline.times, links))


def _check_times(times: Mapping[str, Sequence[float]], count: int) -> None:
    """Refuses those of a network with another number of segments than `count`."""
    counts = {key: len(values) for key, values in times.items()}
    wanted = {"segments": count, "input_gradients": count, "heads": count - 1}
    if counts != wanted:
        allowed = f"{wanted} of this network"
        raise ConfigError("pipeline.times", counts, allowed, "null: they are measured")


def method_costs(config: Config, costs: Costs) -> Costs:
    """`costs` as the method of `config` has them."""
    return costs if config.method.local else costs.flowing_back()


def measured_costs(times: Mapping[str, Sequence[float]], links: Sequence[int] = ()) -> Costs:
    """Costs of the form of `pipeline.times`, in seconds a step."""
    return Costs(links=tuple(links), **{key: tuple(values) for key, values in times.items()})


def measure_times(
    config: Config, data: DataDescription, device: Device, threads_: int, rows: int
) -> Times:
    """Builds the network of `config` for real and times its segments on `device`."""
    keep_memory()  # as the processes of the run do
    with building(False, derive(config.seed, "network")):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    traced = trace(network)
    head_at = _heads(config, config.head, data, traced, meta=False)
    shape = (data.channels, data.height, data.width)
    with threads(threads_):
        return measure(traced, shape, head_at, config, device, rows)


def memory_needs(
    config: Config, data: DataDescription, traced: Traced, rows: int, stages: int
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
    config: Config, data: DataDescription, traced: Traced, shapes: Sequence[Shape], stages: int
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


def entrances(data: DataDescription, traced: Traced) -> list[Shape]:
    """Shape of a row at the entrance of every segment."""
    shape = (data.channels, data.height, data.width)
    return [shape, *(one[1:] for one in check_input(traced, (2, *shape))[:-1])]


def _heads(
    config: Config,
    wanted: HeadConfig | PlugInConfig,
    data: DataDescription,
    traced: Traced,
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
            with building(meta, 0):
                head = head_on(wanted, features, classes)
            if meta and isinstance(wanted, PlugInConfig):
                check_head(head, features.shape, classes)
        except ConfigError as error:
            if refused is not None:
                refused.append(error)
            return None
        return head

    starts = traced.starts
    return lambda segment, row: head_for(
        Features(row, channels_at(traced.operations, starts[segment], row))
    )
