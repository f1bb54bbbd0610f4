"""Training in the processes of a world, without a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from dglpipe.config import Config
from dglpipe.methods.run_plan import RunPlan
from dglpipe.monitoring.metrics import Collector, Line, Sink
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.weights import named_tensors, sha256
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.trainer import Trainer
from dglpipe.runtime.worker import open_trainer
from harness.worlds import CPU, run_world


@dataclass(frozen=True)
class TrainedNetwork:
    """The results of a run, without its files."""

    finals: list[dict[str, Any]]
    """The entries of `per_stage` in summary.json, by stage, of replica 0."""
    lines: list[Line]
    """The lines of metrics.jsonl."""
    tensors: dict[tuple[int, int], dict[str, Tensor]]
    """(replica, stage) -> weights and buffers, by key."""

    @property
    def hashes(self) -> list[str]:
        """weights_sha256 by stage."""
        return [final["weights_sha256"] for final in self.finals]

    def tests(self) -> list[Line]:
        """The lines of the last evaluation, by stage, the ensemble last: `lines` has the order in
        which the collector read the ranks."""
        tests = [line for line in self.lines if line.kind == "test"]
        last = max(line.step for line in tests)
        return sorted((line for line in tests if line.step == last), key=lambda at: str(at.stage))


def run_planned(
    layout: Layout, function: Callable[..., Any], config: Config, *args: Any
) -> list[Any]:
    """`run_world` with the plan of `config`, which is made once, as in `dglpipe train`."""
    return run_world(layout, function, make_plan(config, layout), *args)


def train_world(
    config: Config,
    layout: Layout | None = None,
    run_dir: Path | None = None,
    deadline_s: float = 60,
) -> TrainedNetwork:
    """Trains as `dglpipe train` does, in processes of the fork server.

    Args:
        layout: stages and processes; None: as in the configuration.
        run_dir: directory of final weights and checkpoints; None: neither is written.
    """
    return train_all([config], layout, run_dir, deadline_s)[0]


def train_all(
    configs: Sequence[Config],
    layout: Layout | None = None,
    run_dir: Path | None = None,
    deadline_s: float = 60,
) -> list[TrainedNetwork]:
    """`train_world` for one configuration after the other, in the same processes."""
    layout = layout or plan_layout(configs[0].pipeline, configs[0].method, cores=1)
    plans = [make_plan(config, layout) for config in configs]
    by_rank = run_world(layout, _train_all, plans, run_dir, deadline_s=deadline_s)
    return [_gather(layout, [of_rank[at] for of_rank in by_rank]) for at in range(len(configs))]


def hash_all(configs: Sequence[Config], layout: Layout, deadline_s: float = 60) -> list[list[str]]:
    """weights_sha256 by stage, for each configuration.

    Without the final report, which takes longer than such short runs.
    """
    plans = [make_plan(config, layout) for config in configs]
    by_rank = run_world(layout, _hash_all, plans, deadline_s=deadline_s)
    firsts = [rank for rank in range(layout.world_size) if layout.at(rank).replica == 0]
    return [
        [digest for rank in firsts for digest in by_rank[rank][at]] for at in range(len(configs))
    ]


def _hash_all(group: ProcessGroup, plans: Sequence[RunPlan]) -> list[list[str]]:
    store, hashes = group.store, []
    for number, plan in enumerate(plans):
        group.store = PrefixStore(f"run{number}", store)
        trainer = make_trainer(group, plan)
        trainer.run()
        hashes.append([sha256(named_tensors(stage.module)) for stage in trainer.runner.stages])
    group.store = store
    return hashes


def _gather(layout: Layout, by_rank: Sequence[Any]) -> TrainedNetwork:
    finals, lines, _ = by_rank[0]
    firsts = [rank for rank in range(layout.world_size) if layout.at(rank).replica == 0]
    found = [stage for rank in firsts for stage in finals[rank]["stages"]]
    stages = sorted(found, key=lambda stage: stage["stage"])
    tensors = {key: value for _, _, own in by_rank for key, value in own.items()}
    assert [stage["stage"] for stage in stages] == list(range(layout.stages))
    assert len(tensors) == layout.stages * layout.replicas
    return TrainedNetwork(stages, lines, tensors)


class _Lines:
    """A sink that keeps every line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def line(self, line: Line) -> None:
        self.lines.append(line)

    def close(self) -> None:
        """Does nothing: no resource is open."""


def _train_all(group: ProcessGroup, plans: Sequence[RunPlan], run_dir: Path | None) -> list[Any]:
    store, results = group.store, []
    for number, plan in enumerate(plans):
        group.store = PrefixStore(f"run{number}", store)
        results.append(_train(group, plan, run_dir))
    group.store = store
    return results


def _train(group: ProcessGroup, plan: RunPlan, run_dir: Path | None) -> Any:
    topology = group.topology
    trainer = make_trainer(group, plan, run_dir)
    sink = _Lines()
    collector = collect(trainer, sink)
    trainer.run()
    trainer.finish()
    finals = collector.finals(plan.config.timeout_s) if collector else []
    tensors = {
        (topology.replica, stage.index): named_tensors(stage.module)
        for stage in trainer.runner.stages
    }
    return finals, sink.lines, tensors


def collect(trainer: Trainer, *sinks: Sink) -> Collector | None:
    """At rank 0: the collector, which completes the checkpoints; None at other ranks."""
    context, checkpoints = trainer.context, trainer.checkpoints
    if context.topology.rank:
        return None
    world = context.topology.layout
    complete = checkpoints.complete if checkpoints else None
    return Collector(context.group.store, world.world_size, world.replicas, sinks, complete)


def wait_for_checkpoints(run_dir: Path, steps: Sequence[int]) -> None:
    """Waits until the complete checkpoints are at `steps`: threads write them."""
    deadline = time.monotonic() + 30
    while complete_steps(run_dir) != list(steps):
        assert time.monotonic() < deadline, f"{complete_steps(run_dir)} instead of {steps}"
        time.sleep(0.01)


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints that have a manifest."""
    found = (run_dir / "checkpoints").glob("step_*/manifest.json")
    return sorted(int(manifest.parent.name.removeprefix("step_")) for manifest in found)


def make_trainer(group: ProcessGroup, plan: RunPlan, run_dir: Path | None = None) -> Trainer:
    """The trainer of this rank, ready to run."""
    if run_dir is not None:
        run_dir.mkdir(exist_ok=True)
    source = open_images(plan.config)
    if run_dir:
        run_dir.mkdir(exist_ok=True)
    return open_trainer(plan, source, CPU, group, RunDir(run_dir) if run_dir else None)
