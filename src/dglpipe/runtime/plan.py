"""Planning of a run: checks of the settings, layout, cut of the network, and predicted cost."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from dglpipe.config import (
    Config,
    ImageFolderConfig,
    MethodConfig,
    MultistepConfig,
    PipelineConfig,
    StepConfig,
)
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchSchedule, Phase, build_batch_schedule
from dglpipe.data.footprint import data_bytes
from dglpipe.errors import ConfigError
from dglpipe.host import cores
from dglpipe.methods.base import Method
from dglpipe.methods.registry import build_method, build_run_method
from dglpipe.methods.run_plan import RunPlan
from dglpipe.partition.auto_split import measure_times, timed_costs
from dglpipe.partition.balance import stage_costs
from dglpipe.partition.estimate import estimate
from dglpipe.partition.machine_memory import MachineLoad, require_processes
from dglpipe.partition.profile_loader import loading_seconds
from dglpipe.partition.profiling import Times, cpu_threads
from dglpipe.partition.staged_network import (
    StagedNetwork,
    build_staged_network,
    check_per_stage,
)
from dglpipe.partition.throughput_model import LoaderEstimate, Node, Plan, predict
from dglpipe.pipeline.device import check_precision, choose_backend, select
from dglpipe.pipeline.launcher_env import world_of_launcher
from dglpipe.pipeline.message import Direction
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.local_check import check_cut_objectives, check_objectives, check_steps
from dglpipe.runtime.method_check import check_messages
from dglpipe.runtime.open_data import open_images


def plan_layout(
    pipeline: PipelineConfig,
    settings: MethodConfig,
    cores: int,
    world_size: int | None = None,
    local: int | None = None,
) -> Layout:
    """Determines the stages, processes, replicas and threads of a run.

    Args:
        settings: settings of the method, which places the stages on the processes.
        cores: cores of this machine, for the default number of threads.
        world_size: number of processes of an outside launcher; None: no outside launcher.
        local: number of these processes on this machine; None: all.

    Raises:
        ConfigError: more processes than stages, a world size that is not P x R, more threads than
            this machine can run, or numbers that the method does not support.
    """
    replicas = pipeline.replicas
    if world_size is not None and world_size % replicas:
        allowed = f"a divisor of the world size, {world_size}"
        raise ConfigError("pipeline.replicas", replicas, allowed)
    given = world_size // replicas if world_size is not None else None
    placement = build_method(settings).placement(pipeline, given)
    stages, processes = placement.stages, placement.processes
    if processes > stages:
        hint = "Raise pipeline.stages or start fewer processes"
        raise ConfigError("pipeline.processes", processes, f"1 to {stages}, the stages", hint)
    if world_size is not None and processes * replicas != world_size:
        allowed = f"world size {world_size} / replicas {replicas} = {given}"
        hint = f"Start {processes * replicas} processes or leave the key out"
        raise ConfigError("pipeline.processes", processes, allowed, hint)
    threads = pipeline.threads or max(1, cores // (local or processes * replicas))
    require_share_of_cores("pipeline.threads", threads, cores)
    return Layout(stages, processes, replicas, threads, placement.kind)


def make_plan(
    config: Config, layout: Layout, local: int | None = None, source: DataSource | None = None
) -> RunPlan:
    """Builds the plan of a run and finds every error that can be found before the run starts.

    Args:
        config: the configuration; not modified. The plan has a resolved copy.
        local: number of processes on this machine; None: all.
        source: the data set of `config`; None: this function opens the data set.

    Raises:
        UserError: an error in a setting; the message has key, value, allowed values and fix.
    """
    local = local or layout.world_size
    key = "pipeline.replicas" if layout.replicas > 1 else "pipeline.stages"
    got = layout.replicas if layout.replicas > 1 else layout.stages
    require_processes(local, key, got)
    source = source or open_images(config)
    method = _method(config, layout, source)
    network, config, schedule = _cut(config, method, source, layout, local, _is_auto(config), True)
    messages = tuple(
        method.messages(link, network.spec) for link in range(len(network.spec.fields))
    )
    backend = choose_backend(config.pipeline.backend, local)
    _check_precisions(config, layout.stages, backend)
    _warn_of_oversubscription(layout, local)
    plan = RunPlan(
        config=_resolved(config, layout, network.spec.bounds),
        data=source.info,
        layout=layout,
        schedule=schedule,
        backend=backend,
        spec=network.spec,
        messages=messages,
        flops=tuple(network.flops(j) for j in range(layout.stages)),
    )
    if config.link.is_emulated:
        _check_emulated_links(plan)
    if config.on_failure == "restart_stage":
        _check_restarts(method, plan)
    check_messages(method, plan)
    return plan


def _check_restarts(method: Method, plan: RunPlan) -> None:
    """Checks that a stage can be started again while the others go on."""
    layout = plan.layout
    key, got = "on_failure", plan.config.on_failure
    if not method.survives_alone:
        hint = "Its stages wait for each other, so they start again together: give max_restarts=N"
        raise ConfigError(key, got, f"stop with method={method.name}", hint)
    if layout.processes < layout.stages:
        hint = "All stages are in one process: give max_restarts=N"
        raise ConfigError(key, got, "stop with method.simulate=true", hint)
    if plan.backend == "nccl":
        hint = "NCCL ends the neighbours of a lost process: give max_restarts=N"
        raise ConfigError(key, got, "stop with pipeline.backend=nccl", hint)
    if not plan.config.checkpoint.every:
        hint = "A stage starts again from its own checkpoint: give checkpoint.every=STEPS"
        raise ConfigError(key, got, "stop with checkpoint.every=0", hint)
    if world_of_launcher() is not None:
        hint = "torchrun ends all processes when one has failed: give torchrun --max-restarts=N"
        raise ConfigError(key, got, "stop under torchrun", hint)


def _check_emulated_links(plan: RunPlan) -> None:
    """Checks that links are emulated where that is possible, and deliver within the timeout."""
    config, layout = plan.config, plan.layout
    if plan.backend == "nccl" or layout.is_pipelined:
        got = "nccl" if plan.backend == "nccl" else "a pipeline of backprop"
        allowed = "emulated links of a chain over gloo"
        raise ConfigError("link", f"emulated links with {got}", allowed)
    formats = [
        plan.formats(link, way).get(Phase.TRAIN)
        for link in range(len(plan.messages))
        for way in Direction
    ]
    largest = max((one.nbytes(one.rows) for one in formats if one is not None), default=0)
    seconds = config.link.delay + largest / config.link.rate
    if layout.processes > 1 and seconds >= config.timeout_s:
        allowed = f"links that deliver a message within timeout_s={config.timeout_s:g}"
        hint = f"A message takes {seconds:.4g} seconds. Raise link.bandwidth_mbps or timeout_s"
        raise ConfigError("link", asdict(config.link), allowed, hint)


def _is_auto(config: Config) -> bool:
    return bool(config.pipeline.split == "auto")


def _resolved(config: Config, layout: Layout, bounds: Sequence[int]) -> Config:
    """`config` with the stages, processes, threads and cut of the plan."""
    pipeline = replace(
        config.pipeline,
        stages=layout.stages,
        processes=layout.processes,
        threads=layout.threads,
        split=list(bounds[1:]) if _is_auto(config) else config.pipeline.split,
    )
    return replace(config, pipeline=pipeline)


def _check_precisions(config: Config, stages: int, backend: str) -> None:
    for j in range(stages):
        own = bool(config.per_stage) and "precision" in config.per_stage[j]
        key = f"per_stage[{j}].precision" if own else "precision"
        check_precision(config.stage(j).precision.name, backend, key)


def _check_drops(config: Config, stages: int) -> None:
    """Checks that the learning rate of every stage has drops, for `method.reset_optimizer`."""
    hint = "method.reset_optimizer clears the optimizer at each drop of the learning rate"
    for j in range(stages):
        schedule = config.stage(j).schedule
        own = bool(config.per_stage) and "schedule" in config.per_stage[j]
        key = f"per_stage[{j}].schedule" if own else "schedule"
        if not isinstance(schedule, StepConfig | MultistepConfig):
            raise ConfigError(key, schedule.name, "step or multistep, which have drops", hint)


def _warn_of_oversubscription(layout: Layout, local: int) -> None:
    """Warns if `local` processes have more threads than this machine has cores."""
    have = cores()
    if layout.threads * local > have and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(
            f"dglpipe: warning: CPU oversubscription: {local} processes x {layout.threads} "
            f"threads (pipeline.threads) on {have} cores\n"
        )


def plan_run(config: Config) -> Plan:
    """Predicts cost and throughput of the stages of `config`, without training.

    Raises:
        UserError: as `make_plan`.
    """
    layout = plan_layout(config.pipeline, config.method, cores())
    timed = config.pipeline.cost == "time"
    _warn_of_oversubscription(layout, layout.world_size)
    source = open_images(config, layout.replicas)
    method = _method(config, layout, source)
    local = layout.world_size
    network, config, schedule = _cut(config, method, source, layout, local, True, timed)
    rows = schedule.largest_rows(Phase.TRAIN)
    image = network.spec.image_shape
    if config.pipeline.cost == "flops" or not config.pipeline.times:
        # A prediction by FLOPs assumes separate cores for every process.
        loader = LoaderEstimate(image)
        return predict(estimate(network, rows), rows, layout, method, loader)
    costs = timed_costs(config, method, layout.stages)
    seconds = stage_costs(costs, network.spec.bounds)
    data = source.load()
    with cpu_threads(layout.threads):
        loading = loading_seconds(config, data, schedule)
    loader = LoaderEstimate(image, loading, data.workers or 0)
    computes = choose_backend(config.pipeline.backend, layout.world_size) != "nccl"
    stages = estimate(network, rows, seconds)
    return predict(stages, rows, layout, method, loader, Node(cores(), computes))


def _method(config: Config, layout: Layout, source: DataSource) -> Method:
    """The method of the run, with its local objectives.

    Raises:
        ConfigError: `per_stage` has another number of entries than K; as `check_objectives`.
    """
    check_per_stage(config, layout.stages)
    method = build_run_method(config, layout.stages, source.info)
    check_objectives(config, method)
    return method


def _cut(
    config: Config,
    method: Method,
    source: DataSource,
    layout: Layout,
    local: int,
    timed: bool,
    runs: bool,
) -> tuple[StagedNetwork, Config, BatchSchedule]:
    """The cut network on the meta device, `config` with measured times, and the batch schedule.

    Args:
        timed: whether to measure times if `pipeline.cost` is `time`.
        runs: whether the network and the data must fit into the memory of this machine.
    """
    stages = layout.stages
    schedule = build_batch_schedule(config, source, method.rounds(stages))
    for j in range(stages):
        method.learning(j, config.label_smoothing)
    check_steps(config, method, schedule.steps_per_round)
    method.check(config, layout, schedule)
    if config.probe.every and not method.measures:
        allowed = f"0 with method={method.name}"
        raise ConfigError("probe.every", config.probe.every, allowed, "It passes no probe batch on")
    if config.method.reset_optimizer:
        _check_drops(config, stages)
    rows = schedule.largest_rows(Phase.TRAIN)
    load = _load_of_machine(config, source, layout, local, schedule) if runs else None
    if timed and config.pipeline.cost == "time" and config.pipeline.times is None:
        config = _with_times(config, method, source, layout, local, rows, load)
    network = build_staged_network(config, method, source.info, stages, True, rows, load)
    network.check_outputs()
    check_cut_objectives(method, network)
    return network, config, schedule


def _load_of_machine(
    config: Config, source: DataSource, layout: Layout, local: int, schedule: BatchSchedule
) -> MachineLoad:
    """The part of the run on this machine. Under an outside launcher, the machine of rank 0."""
    if isinstance(config.data, ImageFolderConfig):
        require_share_of_cores("data.workers", config.data.workers or 0, cores())
    return MachineLoad(
        layout,
        range(local),
        schedule.largest_rows(Phase.TRAIN),
        schedule.largest_rows(Phase.TEST),
        data_bytes(config.data, source.info),
        choose_backend(config.pipeline.backend, local) != "nccl",
    )


def require_share_of_cores(key: str, count: int, cores: int) -> None:
    """Raises ConfigError for more than 4 threads or processes per core."""
    if count > 4 * cores:
        allowed = f"at most {4 * cores}, 4 per core of this machine"
        raise ConfigError(key, count, allowed)


def _with_times(
    config: Config,
    method: Method,
    source: DataSource,
    layout: Layout,
    local: int,
    rows: int,
    load: MachineLoad | None,
) -> Config:
    """`config` with `pipeline.times` measured on this machine."""
    backend = choose_backend(config.pipeline.backend, local)
    _check_precisions(config, layout.stages, backend)
    # Find errors in the settings before the measurement.
    by_flops = replace(config, pipeline=replace(config.pipeline, cost="flops"))
    info, count = source.info, layout.stages
    network = build_staged_network(by_flops, method, info, count, meta=True, load=load)
    network.check_outputs()
    device, stages = select(backend, 0), layout.stages
    times = measure_times(config, method, source.info, device, layout.threads, rows, stages)
    alike = all(one is times[0] for one in times)
    written = _rounded(times[0]) if alike else [_rounded(one) for one in times]
    return replace(config, pipeline=replace(config.pipeline, times=written))


def _rounded(times: Times) -> dict[str, list[float]]:
    """`times` in the format of `pipeline.times`, rounded to 0.1 microseconds."""
    return {name: [round(one, 7) for one in values] for name, values in asdict(times).items()}
