"""`dglpipe train`: alone, under torchrun, or as a sweep."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dglpipe.cli.compose import Arguments, compose, samples_of_sweep, take_apart, to_plain
from dglpipe.cli.config_groups import CONFIG_MODULE
from dglpipe.config import Config, parse
from dglpipe.errors import DglpipeError, UserError
from dglpipe.pipeline.process_group import record, world_of_launcher
from dglpipe.runtime.run import train as train_here
from dglpipe.runtime.run_dir import default_path
from dglpipe.runtime.torchrun import train_under_launcher

PEER_PAUSE_S = 2.0
"""Seconds after which another rank than 0 reports a mistake that rank 0 has reported too."""
HELP = {"--help", "-h", "--hydra-help"}
ANSWERED = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--resolve", "--package", "-p", "--info")
"""Hydra's flags that show something."""
NO_FILES = ("hydra.output_subdir=null", "hydra/job_logging=none")
"""Keeps Hydra's own files out of the run directories of a sweep."""


def train(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parts = take_apart(arguments)
    world = world_of_launcher()
    if parts.flags:
        return _ask_hydra(parts, arguments)
    if parts.sweep:
        if world is not None:
            raise UserError("-m under torchrun: start the sweep with `dglpipe train -m`")
        return _sweep(parts)
    if world is None:
        train_here(compose(parts))
    else:
        _train_as_worker(parts, world[0])
    return 0


def _train_as_worker(parts: Arguments, rank: int) -> None:
    """Every rank finds the same mistake; rank 0 tells it, the others if it does not."""
    try:
        record(train_under_launcher)(compose(parts))
    except UserError:
        if rank:
            time.sleep(PEER_PAUSE_S)
        raise


def _ask_hydra(parts: Arguments, arguments: Sequence[str]) -> int:
    """Hydra answers its own flags that train nothing; mistakes are told in our words."""
    unknown = [flag for flag in parts.flags if flag.startswith("-") and flag not in ANSWERED]
    if unknown:
        raise UserError(f"train: got {unknown[0]}; allowed flags: -m, {', '.join(ANSWERED)}")
    if not HELP.intersection(parts.flags):
        compose(parts)
        arguments = [word for word in arguments if not word.startswith("run_dir=")]
    sys.argv = ["dglpipe train", *arguments]
    hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")(
        lambda tree: train_here(_config(tree))
    )()
    return 0


def _sweep(parts: Arguments) -> int:
    """Runs one job after the other; a failed job does not stop the others."""
    for sample in samples_of_sweep(parts):
        compose(sample)
    path = Path(parts.run_dir) if parts.run_dir else default_path()
    failed: list[int] = []

    def job(tree: DictConfig) -> None:
        number = HydraConfig.get().job.num
        try:
            output = HydraConfig.get().runtime.output_dir
            train_here(replace(_config(tree), run_dir=output))
        except DglpipeError as error:
            sys.stderr.write(f"job {number}: {error}\n")
            failed.append(number)

    flags = ["--config-dir", parts.config_dir] if parts.config_dir else []
    where = os.fspath(path.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    sys.argv = ["dglpipe train", "-m", *flags, "--config-name", parts.config_name]
    sys.argv += [*parts.overrides, f"hydra.sweep.dir='{where}'", *NO_FILES]
    hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")(
        job
    )()
    if failed:
        sys.stderr.write(f"dglpipe: jobs {failed} failed\n")
    return 1 if failed else 0


def _config(tree: DictConfig) -> Config:
    return parse(to_plain(tree))
