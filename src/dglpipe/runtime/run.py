"""One training run, from a configuration to its summary."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dglpipe.config import Config, from_yaml, to_tree, to_yaml
from dglpipe.errors import ConfigError, ConsistencyError, RunDirError, RunFailedError, UserError
from dglpipe.files import write_json, write_whole
from dglpipe.host import cores
from dglpipe.pipeline.process_group import ProcessGroup, Store, rendezvous, world_of_launcher
from dglpipe.pipeline.topology import Layout, plan_layout
from dglpipe.runtime import failure
from dglpipe.runtime.config_consistency import flatten
from dglpipe.runtime.launcher import launch
from dglpipe.runtime.plan import check
from dglpipe.runtime.run_dir import RunDir, default_path
from dglpipe.runtime.signals import on_sigterm
from dglpipe.runtime.summary import unfinished
from dglpipe.runtime.worker import run_process

TERMINATION_PAUSE_S = 1.5
"""What the loss of a neighbour takes to be noticed, at most."""
RESUMABLE = {
    *("run_dir", "resume", "timeout_s", "log_every", "checkpoint.every", "checkpoint.keep"),
    *("pipeline.processes", "pipeline.threads", "pipeline.depth", "pipeline.backend"),
    *("pipeline.checked", "pipeline.cost", "pipeline.memory_limit", "pipeline.times", "timeline"),
    *("link.delay_ms", "link.bandwidth_mbps"),
    *(f"pipeline.times.{part}" for part in ("segments", "input_gradients", "heads")),
}
"""Keys that may differ from those of the run that is resumed: they change no weight."""


def train(config: Config) -> dict[str, Any]:
    """Checks `config`, starts its processes on this machine, and waits for them.

    Returns:
        The summary.

    Raises:
        UserError: nothing was trained, and there is no run directory.
        RunFailedError: a process failed.
    """
    layout = plan_layout(config.pipeline, config.method, cores())
    _adopt_cut(config, layout)
    flops = check(config, layout, layout.world_size)
    run_dir = RunDir(Path(config.run_dir) if config.run_dir else default_path())
    run_dir.check(config.resume)
    is_new = run_dir.status() is None
    with run_dir.claim(config.resume):
        _settle(config, layout, run_dir)
        try:
            return launch(config, layout, run_dir, flops)
        except UserError:
            if is_new:
                run_dir.discard()
            raise


def train_under_launcher(config: Config) -> None:
    """Runs this process as one worker of torchrun or the like."""
    world = world_of_launcher()
    assert world is not None
    rank, size, local = world
    layout = plan_layout(config.pipeline, config.method, cores(), size, local)
    if rank:
        # Rank 0 says where the cut is, for two measurements give two cuts.
        own = copy.deepcopy(config)
        own.pipeline.cost = "flops"
        flops = check(own, layout, local)
    else:
        _adopt_cut(config, layout)
        flops = check(config, layout, local)
    store = rendezvous(config.timeout_s)
    group = ProcessGroup.store_only(layout.at(rank), store)
    if rank:
        said = json.loads(store.get("dglpipe/run_dir"))
        group.wait_for_departure("run_dir")
        if "error" in said:
            raise RunDirError(said["error"])
        run_dir = RunDir(Path(said["path"]))
        config.run_dir = os.fspath(run_dir.path)
        config.pipeline.split, config.pipeline.times = said["split"], said["times"]
        _resolve(config, layout)
        same = own.pipeline.split == config.pipeline.split
        _run_worker(config, layout, run_dir, store, flops if same else None)
        return
    run_dir = RunDir(Path(config.run_dir) if config.run_dir else default_path())
    is_new = run_dir.status() is None
    try:
        lock = run_dir.claim(config.resume)
        _settle(config, layout, run_dir)
    except UserError as error:
        store.set("dglpipe/run_dir", json.dumps({"error": str(error)}))
        group.wait_for_departure("run_dir")
        raise
    said = {
        "path": os.fspath(run_dir.path),
        "split": config.pipeline.split,
        "times": config.pipeline.times,
    }
    store.set("dglpipe/run_dir", json.dumps(said))
    with lock:
        _run_worker(config, layout, run_dir, store, flops, is_new)


def _run_worker(
    config: Config,
    layout: Layout,
    run_dir: RunDir,
    store: Store,
    flops: Sequence[int] | None,
    is_new: bool = False,
) -> None:
    """Runs the worker; what went wrong is told here, for nobody else will.

    Args:
        is_new: whether this process made the run directory, and removes it again when the
            user's mistake is found before the first step.
    """
    rank = int(os.environ["RANK"])
    on_sigterm(lambda: _terminated(config, layout, run_dir, rank))
    try:
        run_process(config, layout, run_dir, store, flops)
    except UserError:
        story = failure.read_own(run_dir, rank)
        if story.step:
            _conclude("failed", config, layout, run_dir)
            raise RunFailedError(
                story.describe(run_dir.log(rank), config.checkpoint.every > 0)
            ) from None
        if is_new:
            run_dir.discard()
        raise
    except ConsistencyError:
        if is_new:
            run_dir.discard()
        raise
    except KeyboardInterrupt:
        _conclude("interrupted", config, layout, run_dir)
        raise
    except Exception:
        _conclude("failed", config, layout, run_dir)
        story = failure.read_own(run_dir, rank)
        text = (
            story.describe(run_dir.log(rank), config.checkpoint.every > 0)
            if story.primary
            else story.line()
        )
        sys.stderr.write(f"{text}\n")
        raise


def _terminated(config: Config, layout: Layout, run_dir: RunDir, rank: int) -> None:
    """Tells how the run ended whose agent ends this process: because another one is gone,
    which this one then notices by itself, or because somebody wants it to stop."""
    end = time.monotonic() + TERMINATION_PAUSE_S
    while not run_dir.failure(rank).exists() and time.monotonic() < end:
        time.sleep(0.05)
    if not run_dir.failure(rank).exists():
        _conclude("interrupted", config, layout, run_dir)
        sys.stderr.write(f"{layout.at(rank).name()} was told to terminate (SIGTERM)\n")
        return
    _conclude("failed", config, layout, run_dir)
    advice = failure.advice(config.checkpoint.every > 0)
    line = failure.read_own(run_dir, rank).line()
    sys.stderr.write(f"{line}\n{advice}\nlog: {run_dir.log(rank)}\n")


def _conclude(status: str, config: Config, layout: Layout, run_dir: RunDir) -> None:
    """Leaves the summary of a run that ends too early, unless another rank has done so."""
    if not run_dir.summary.exists():
        write_json(run_dir.summary, unfinished(status, config, layout))


def _adopt_cut(config: Config, layout: Layout) -> None:
    """A run that is resumed keeps its cut, wherever a new measurement would put it."""
    if config.resume == "never" or config.run_dir is None or config.pipeline.split != "auto":
        return
    run_dir = RunDir(Path(config.run_dir))
    run_dir.check(config.resume)
    if run_dir.status() is None:
        return
    old = _config_of(run_dir)
    if (old.model, old.pipeline.stages) == (config.model, layout.stages):
        config.pipeline.split, config.pipeline.times = old.pipeline.split, old.pipeline.times


def _config_of(run_dir: RunDir) -> Config:
    try:
        return from_yaml(run_dir.config.read_text())
    except (ValueError, OSError) as error:
        raise RunDirError(
            f"run_dir: {run_dir.config} is not the configuration of a run ({error}); give "
            "another directory, or delete this one"
        ) from error


def _settle(config: Config, layout: Layout, run_dir: RunDir) -> None:
    """Writes the resolved configuration, after a look at the one that is resumed."""
    config.run_dir = os.fspath(run_dir.path)
    _resolve(config, layout)
    if run_dir.config.is_file():
        _check_same(_config_of(run_dir), config)
    run_dir.forget_end()
    write_whole(run_dir.config, to_yaml(config))


def _resolve(config: Config, layout: Layout) -> None:
    config.pipeline.stages = layout.stages
    config.pipeline.processes = layout.processes
    config.pipeline.threads = layout.threads


def _check_same(old: Config, new: Config) -> None:
    before, after = flatten(to_tree(old)), flatten(to_tree(new))
    for key in sorted(before.keys() | after.keys()):
        if key not in RESUMABLE and before.get(key) != after.get(key):
            hint = "A resumed run keeps its settings; give another run_dir for a new one"
            raise ConfigError(key, after.get(key), f"{before.get(key)!r}, as before", hint)
