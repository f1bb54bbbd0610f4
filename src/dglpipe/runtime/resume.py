"""Resuming a run: the settings that may differ, and the cut that stays the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from dglpipe.config import Config, from_yaml, to_tree
from dglpipe.errors import ConfigError, RunDirError
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.config_consistency import flatten, same
from dglpipe.runtime.run_dir import RunDir

RESUMABLE = {
    *("run_dir", "resume", "timeout_s", "max_restarts", "on_failure", "on_nonfinite"),
    *("log_every", "checkpoint.every", "checkpoint.keep", "probe.every"),
    *("pipeline.processes", "pipeline.threads", "pipeline.depth", "pipeline.backend"),
    *("pipeline.checked", "pipeline.cost", "pipeline.memory_limit", "pipeline.times", "timeline"),
    *("link.delay_ms", "link.bandwidth_mbps"),
    *(f"pipeline.times.{part}" for part in ("segments", "input_gradients", "heads")),
}
"""Keys that may differ from the resumed run, because they do not change the weights."""


def with_cut_of_resumed_run(config: Config, layout: Layout) -> Config:
    """`config` with the cut of the run in `run_dir`, if that run is to be resumed.

    With `pipeline.split=auto`, a new measurement could give another cut.
    """
    if config.resume == "never" or config.run_dir is None or config.pipeline.split != "auto":
        return config
    run_dir = RunDir(Path(config.run_dir))
    run_dir.check(config.resume)
    if run_dir.status() is None:
        return config
    old = read_config(run_dir)
    is_same_network = same(to_tree(old)["model"], to_tree(config)["model"])
    if not is_same_network or old.pipeline.stages != layout.stages:
        return config
    return with_cut(config, old.pipeline.split, old.pipeline.times)


def with_cut(config: Config, split: object, times: object) -> Config:
    """`config` with another `pipeline.split` and `pipeline.times`."""
    return replace(config, pipeline=replace(config.pipeline, split=split, times=times))


def read_config(run_dir: RunDir) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
        RunDirError: the configuration cannot be read.
    """
    try:
        return from_yaml(run_dir.config.read_text())
    except (ValueError, OSError) as error:
        raise RunDirError(
            f"run_dir: {run_dir.config} is not the configuration of a run ({error}); give "
            "another directory, or delete this directory"
        ) from error


def identity(config: Config) -> str:
    """SHA-256 of all settings that a resumed run keeps; a checkpoint of other settings belongs to
    another run."""
    settings = flatten(to_tree(config))
    kept = {key: value for key, value in settings.items() if key not in RESUMABLE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_same(old: Config, new: Config) -> None:
    """Raises ConfigError at the first setting of a resumed run that may not differ."""
    before, after = flatten(to_tree(old)), flatten(to_tree(new))
    for key in sorted(before.keys() | after.keys()):
        if key not in RESUMABLE and not same(before.get(key), after.get(key)):
            hint = (
                "A resumed run keeps the settings in its config.yaml; give another run_dir for a "
                "new run"
            )
            raise ConfigError(key, after.get(key), f"{before.get(key)!r}, as before", hint)
