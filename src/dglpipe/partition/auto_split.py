"""First segment of every stage, from `pipeline.split`, `cost` and `memory_limit`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from dglpipe.config import Config, PipelineConfig
from dglpipe.data import DataInfo
from dglpipe.errors import ConfigError
from dglpipe.host import keep_freed_memory
from dglpipe.models import build_network
from dglpipe.models.meta import building
from dglpipe.partition.balance import SegmentCosts, balanced, stage_costs
from dglpipe.partition.cut_problem import CutProblem
from dglpipe.partition.flops import Shape, flop_costs, link_bytes
from dglpipe.partition.memory import MemoryLimit
from dglpipe.partition.profiling import Times, cpu_threads, measure
from dglpipe.partition.segments import trace
from dglpipe.partition.split import boundaries
from dglpipe.partition.stage_method import StageMethod
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.seeds import derive


def choose_bounds(problem: CutProblem, rows: int | None) -> list[int]:
    """First segment of every stage, as `config.pipeline` asks for.

    Args:
        rows: rows per step on one replica, for `memory_limit`; None: the limit is not checked.

    Raises:
        ConfigError: more stages than segments, a list that does not fit, a stage that needs
            more memory than the limit; `cost=time` without `times`, or with `times` of another
            network.
    """
    pipeline, stages = problem.config.pipeline, problem.stages
    names = [segment.name for segment in problem.traced.segments]
    # `even_boundaries` also detects too many stages for `auto`.
    split = "even" if pipeline.split == "auto" else pipeline.split
    bounds = boundaries(split, len(names), stages, names)
    if pipeline.times is not None:
        _check_times(pipeline, len(names), stages)
    limit = _limit(problem, rows)
    if pipeline.split == "auto":
        return _best_bounds(problem, limit)
    if limit is not None:
        limit.check(bounds, "pipeline.split=auto searches for a cut that fits")
    return bounds


def _limit(problem: CutProblem, rows: int | None) -> MemoryLimit | None:
    size = problem.config.pipeline.memory_bytes
    if size is None or rows is None:
        return None
    per_stage = any(problem.config.per_stage)
    return MemoryLimit(size, tuple(problem.memory_needs(rows)), per_stage)


def _best_bounds(problem: CutProblem, limit: MemoryLimit | None) -> list[int]:
    refused: dict[int, ConfigError] = {}
    costs = network_costs(problem, refused)
    joined, count = problem.traced.joined, len(problem.traced.segments)
    if problem.stages > count - len(joined):
        allowed = f"at most {count - len(joined)}: tensors are shared by segments"
        hint = f"No cut in front of {sorted(joined)}"
        raise ConfigError("pipeline.stages", problem.stages, allowed, hint)

    def may(_stage: int, first: int, end: int) -> bool:
        return first not in joined and end not in joined

    def fits(j: int, first: int, end: int) -> bool:
        return may(j, first, end) and (limit is None or limit.fits(j, first, end))

    found = balanced(costs, fits)
    if found is None and limit is not None:
        hint = "No cut needs less memory: use more stages or a smaller batch"
        limit.check(limit.nearest(may), hint)
    assert found is not None, "without a limit some cut fits"
    if math.inf in stage_costs(costs, found):
        raise _no_heads(costs, refused)
    return found


def _no_heads(costs: Sequence[SegmentCosts], refused: Mapping[int, ConfigError]) -> ConfigError:
    """The error if no cut can have its heads; prefers the reason of a head that fits at no cut.

    Args:
        refused: stage -> reason, from `network_costs`.
    """
    nowhere = [j for j, own in enumerate(costs) if set(own.heads) == {math.inf}]
    for j in (*nowhere, *refused):
        if j in refused:
            return refused[j]
    allowed = "a number of stages for which every cut can have its head"
    return ConfigError("pipeline.stages", len(costs), allowed)


def network_costs(
    problem: CutProblem, refused: dict[int, ConfigError] | None = None
) -> list[SegmentCosts]:
    """Costs by stage, each with its own settings: FLOPs per sample, or seconds per step.

    Args:
        refused: filled with stage -> reason why its head cannot be built at some cut; the cost of
            such a cut is infinite.

    Raises:
        ConfigError: `cost=time` without `times`.
    """
    if problem.config.pipeline.cost == "time":
        return timed_costs(problem.config, problem.method, problem.stages, problem.shapes)
    known: dict[str, tuple[SegmentCosts, list[ConfigError]]] = {}
    result = []
    for j in range(problem.stages):
        item_bytes = problem.item_bytes(j)
        kind = f"{problem.auxiliary_kind(j)} {item_bytes}"
        if kind not in known:
            errors: list[ConfigError] = []
            auxiliary_at = problem.auxiliary_at(j, refused=errors)
            costs = flop_costs(
                problem.flops, auxiliary_at, item_bytes, problem.method.replays_forward
            )
            known[kind] = method_costs(problem.method, costs), errors
        costs, errors = known[kind]
        result.append(costs)
        if refused is not None and errors:
            refused[j] = errors[0]
    return result


def timed_costs(
    config: Config, method: StageMethod, stages: int, shapes: Sequence[Shape] = ()
) -> list[SegmentCosts]:
    """Costs by stage in seconds per step, from `pipeline.times`.

    Args:
        stages: K.
        shapes: shape of one input row of every segment, for the bytes on the links.

    Raises:
        ConfigError: `pipeline.times` is null.
    """
    if config.pipeline.times is None:
        allowed = "flops, or time with pipeline.times"
        raise ConfigError("pipeline.cost", "time without pipeline.times", allowed)
    result = []
    for j in range(stages):
        links = link_bytes(shapes, PRECISIONS[config.stage(j).precision.name].item_bytes)
        costs = measured_costs(config.pipeline.times_of(j), links)
        result.append(method_costs(method, costs))
    return result


def _check_times(pipeline: PipelineConfig, count: int, stages: int) -> None:
    """Raises ConfigError if `times` are for another number of stages or segments."""
    times, hint = pipeline.times, "Use null to measure the times"
    if isinstance(times, list) and len(times) != stages:
        allowed = f"{stages} entries, one per stage, or one for all stages"
        raise ConfigError("pipeline.times", f"{len(times)} entries", allowed, hint)
    wanted = {"segments": count, "input_gradients": count, "heads": count - 1}
    for j in range(stages):
        counts = {key: len(values) for key, values in pipeline.times_of(j).items()}
        if counts != wanted:
            key = f"pipeline.times[{j}]" if isinstance(times, list) else "pipeline.times"
            raise ConfigError(key, counts, f"{wanted} of this network", hint)


def method_costs(method: StageMethod, costs: SegmentCosts) -> SegmentCosts:
    """The costs of `method`, derived from the costs of local learning."""
    return costs.with_input_gradients() if method.flows_back else costs


def measured_costs(times: Mapping[str, Sequence[float]], links: Sequence[int] = ()) -> SegmentCosts:
    """Costs in seconds per step.

    Args:
        times: lists of seconds in the format of `pipeline.times`.
        links: bytes per row that cross each cut.
    """
    return SegmentCosts(links=tuple(links), **{key: tuple(one) for key, one in times.items()})


def measure_times(
    config: Config,
    method: StageMethod,
    data: DataInfo,
    device: Device,
    threads: int,
    rows: int,
    stages: int,
) -> list[Times]:
    """Builds the network of `config` and measures its segments on `device`, with the settings of
    each stage. Equal settings are measured once.

    Args:
        threads: number of CPU threads.
        rows: rows per step on one replica.
        stages: K.
    """
    keep_freed_memory()  # as in the processes of a run
    with building(False, derive(config.seed, "network")):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    traced = trace(network, method.watches_branches)
    problem = CutProblem(config, method, data, traced, stages)
    known: dict[str, Times] = {}
    result = []
    with cpu_threads(threads):
        for j in range(stages):
            own = config.stage(j)
            # The time of a step does not depend on the learning rate. Clipping is not measured.
            optimizer = dataclasses.replace(own.optimizer, lr=1.0, clip=None)
            kind = f"{problem.auxiliary_kind(j)} {optimizer} {own.precision}"
            if kind not in known:
                auxiliary_at = problem.auxiliary_at(j, meta=False)
                shape = problem.image_shape
                known[kind] = measure(problem.traced, shape, auxiliary_at, own, device, rows)
            result.append(known[kind])
    return result
