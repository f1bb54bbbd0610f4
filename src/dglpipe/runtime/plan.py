"""A run before it starts: what is wrong with it, what it takes, and where it is cut."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import asdict

from dglpipe.config import AsyncConfig, Config
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import Phase, build_batch_schedule
from dglpipe.errors import ConfigError
from dglpipe.host import cores
from dglpipe.methods.backprop import check_microbatches
from dglpipe.methods.dgl_async.updates import check_drops
from dglpipe.models.losses import build_loss
from dglpipe.partition.auto_split import measure_times, timed_costs
from dglpipe.partition.balance import stage_costs
from dglpipe.partition.estimate import estimate
from dglpipe.partition.pipeline_spec import PipelineSpec, build_spec, check_per_stage
from dglpipe.partition.profile_loader import loading_seconds
from dglpipe.partition.profiling import Times, threads
from dglpipe.partition.throughput_model import LoaderEstimate, Node, Plan, predict
from dglpipe.pipeline.device import check_precision, choose_backend, select
from dglpipe.pipeline.topology import Layout, plan_layout
from dglpipe.runtime.open_data import open_images


def check(config: Config, layout: Layout, local: int) -> list[int]:
    """All that can be known to be wrong before anything is started.

    `pipeline.split=auto` becomes the list that it stands for.

    Returns:
        FLOPs a sample, of every stage.

    Raises:
        UserError: with the key, what came, what is allowed and what to do.
    """
    source = open_images(config)
    spec, _ = _draw(config, source, layout, local, config.pipeline.split == "auto")
    if config.pipeline.split == "auto":
        config.pipeline.split = list(spec.bounds[1:])
    build_loss(config.method.loss, config.label_smoothing)
    backend = choose_backend(config.pipeline.backend, local)
    if config.link.is_emulated and (backend == "nccl" or layout.is_pipelined):
        got = "nccl" if backend == "nccl" else "a pipeline of backprop"
        raise ConfigError("link", f"slow links with {got}", "slow links of a chain over gloo")
    if isinstance(config.method, AsyncConfig):
        _check_async(config, config.method, layout)
    _check_precisions(config, layout.stages, backend)
    _warn_of_crowd(layout, local)
    return [spec.flops(j) for j in range(layout.stages)]


def _check_precisions(config: Config, stages: int, backend: str) -> None:
    for j in range(stages):
        own = bool(config.per_stage) and "precision" in config.per_stage[j]
        key = f"per_stage[{j}].precision" if own else "precision"
        check_precision(config.stage(j).precision.name, backend, key)


def _warn_of_crowd(layout: Layout, local: int) -> None:
    """Tells of `local` processes that are too many for the cores of this machine."""
    have = cores()
    if layout.threads * local > have and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(
            f"dglpipe: warning: {local} processes x {layout.threads} threads "
            f"(pipeline.threads) on {have} cores: they will be in each other's way\n"
        )


def _check_async(config: Config, method: AsyncConfig, layout: Layout) -> None:
    if method.reset_optimizer:
        for j in range(layout.stages):
            check_drops(config.stage(j).schedule, f"schedule of stage {j}")
    rows = config.evaluate.batch_size
    if rows is not None and rows > config.batch_size and not method.simulate:
        hint = "All messages of method=dgl_async have one size, that of the larger batch"
        raise ConfigError("evaluate.batch_size", rows, f"at most {config.batch_size}", hint)


def plan(config: Config) -> Plan:
    """What the stages of `config` will take, and how fast they can be, without training.

    Raises:
        UserError: as `train` does.
    """
    layout = plan_layout(config.pipeline, config.method, cores())
    _warn_of_crowd(layout, layout.world_size)
    source = open_images(config, layout.replicas)
    spec, rows = _draw(config, source, layout, layout.world_size, True)
    image = spec.input_shape(0)
    if config.pipeline.cost == "flops" or not config.pipeline.times:
        # Work by FLOPs is that of any machine: its cores are not looked at.
        loader = LoaderEstimate(image)
        return predict(estimate(spec, rows), rows, layout, config.method, loader)
    seconds = stage_costs(timed_costs(config, layout.stages), spec.bounds)
    loader = _measure_loader(config, source, layout, image)
    computes = choose_backend(config.pipeline.backend, layout.world_size) != "nccl"
    stages = estimate(spec, rows, seconds)
    return predict(stages, rows, layout, config.method, loader, Node(cores(), computes))


def _measure_loader(
    config: Config, source: DataSource, layout: Layout, image: tuple[int, ...]
) -> LoaderEstimate:
    """The loader of one replica, while nothing else works."""
    data = source.load()
    with threads(layout.threads):
        seconds = loading_seconds(config, data, build_batch_schedule(config, source, layout.stages))
    return LoaderEstimate(image, seconds, data.workers or 0)


def _written(times: Times) -> dict[str, list[float]]:
    """For `pipeline.times`."""
    return {name: [round(one, 7) for one in values] for name, values in asdict(times).items()}


def _draw(
    config: Config, source: DataSource, layout: Layout, local: int, timed: bool
) -> tuple[PipelineSpec, int]:
    """The stages on paper, and the rows of a step on one replica.

    Args:
        timed: whether `pipeline.cost=time` is to be measured; `pipeline.times` gets it.
    """
    check_per_stage(config, layout.stages)
    stream = build_batch_schedule(config, source, layout.stages)
    check_microbatches(config, layout, stream)
    rows = stream.largest_rows(Phase.TRAIN)
    data, pipeline = source.info, config.pipeline
    if timed and pipeline.cost == "time" and pipeline.times is None:
        backend = choose_backend(pipeline.backend, local)
        _check_precisions(config, layout.stages, backend)
        # What is wrong is found before anything is measured.
        by_flops = copy.deepcopy(config)
        by_flops.pipeline.cost = "flops"
        build_spec(by_flops, data, layout.stages, meta=True).check_logits()
        device = select(backend, 0)
        times = measure_times(config, data, device, layout.threads, rows, layout.stages)
        alike = all(one is times[0] for one in times)
        pipeline.times = _written(times[0]) if alike else [_written(one) for one in times]
    spec = build_spec(config, data, layout.stages, meta=True, rows=rows)
    spec.check_logits()
    return spec, rows
