"""`dglpipe train`: one run, one worker of torchrun, or a sweep.

torch is imported when a run starts, so that `--help` and errors in the arguments come first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglpipe.cli.arguments import Arguments, parse_arguments
from dglpipe.cli.config_groups import CONFIG_MODULE
from dglpipe.errors import DglpipeError, PreemptedError, UserError
from dglpipe.pipeline.launcher_env import world_of_launcher

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dglpipe.config import Config

ERROR_PAUSE_S = 2.0
"""Time for rank 0 to print an error that all ranks find, before the other ranks print it."""
HELP_FLAGS = ("--help", "-h")
QUERY_FLAGS = (*HELP_FLAGS, "--hydra-help", "--cfg", "-c", "--resolve", "--package", "-p", "--info")
"""Flags that print information."""
NO_HYDRA_FILES = ("hydra.output_subdir=null", "hydra/job_logging=none")
"""Overrides that keep Hydra's own files out of the run directories of a sweep."""


def train(arguments: Sequence[str]) -> int:
    """Runs the command and returns the exit status."""
    parsed = parse_arguments(arguments)
    if parsed.flags:
        return _answer_query(parsed, arguments)
    world = world_of_launcher()
    if parsed.sweep:
        if world is not None:
            raise UserError("-m under torchrun: start the sweep with `dglpipe train -m`")
        return _sweep(parsed)
    if world is None:
        _train_here(_compose(parsed))
    else:
        _train_as_worker(parsed, world.rank)
    return 0


def _compose(arguments: Arguments) -> Config:
    from dglpipe.cli.compose import compose

    return compose(arguments)


def _train_here(config: Config) -> None:
    from dglpipe.runtime.run import train as train_here

    train_here(config)


def _train_as_worker(arguments: Arguments, rank: int) -> None:
    """Trains as one worker of an outside launcher.

    Every rank finds the same error in the arguments. Ranks above 0 wait before they print the
    error, because the launcher stops all workers after the first exit.
    """
    from dglpipe.host import end_with_parent

    end_with_parent(os.getppid())
    try:
        config = _compose(arguments)
        from dglpipe.pipeline.process_group import record
        from dglpipe.runtime.torchrun import train_under_launcher

        record(train_under_launcher)(config)
    except UserError:
        if rank:
            time.sleep(ERROR_PAUSE_S)
        raise


def _answer_query(parsed: Arguments, arguments: Sequence[str]) -> int:
    """Prints the help text, or passes the query to Hydra after checking the overrides."""
    unknown = [flag for flag in parsed.flags if flag.startswith("-") and flag not in QUERY_FLAGS]
    if unknown:
        raise UserError(f"train: got {unknown[0]}; allowed flags: -m, {', '.join(QUERY_FLAGS)}")
    if set(HELP_FLAGS).intersection(parsed.flags):
        from dglpipe.cli.train_help import train_help

        sys.stdout.write(train_help(parsed.overrides))
        return 0
    if "--hydra-help" not in parsed.flags:
        _compose(parsed)
        arguments = [word for word in arguments if not word.startswith("run_dir=")]
    _run_hydra(arguments, lambda tree: _train_here(_parse(tree)))
    return 0


def _sweep(parsed: Arguments) -> int:
    """Runs the jobs of a sweep in sequence; a failed job does not stop the next jobs."""
    from hydra.core.hydra_config import HydraConfig

    from dglpipe.cli.compose import compose, samples_of_sweep

    for sample in samples_of_sweep(parsed):
        compose(sample)
    from dglpipe.runtime.run_dir import default_path

    path = Path(parsed.run_dir) if parsed.run_dir else default_path()
    failed: list[int] = []
    preempted: list[PreemptedError] = []

    def job(tree: DictConfig) -> None:
        number = HydraConfig.get().job.num
        if preempted:
            return
        try:
            output = HydraConfig.get().runtime.output_dir
            _train_here(replace(_parse(tree), run_dir=output))
        except PreemptedError as error:
            preempted.append(error)  # Hydra would report it as a crash
        except DglpipeError as error:
            sys.stderr.write(f"job {number}: {error}\n")
            failed.append(number)

    flags = ["--config-dir", parsed.config_dir] if parsed.config_dir else []
    flags += ["--config-name", parsed.config_name]
    folder = os.fspath(path.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    sweep_dir = f"hydra.sweep.dir='{folder}'"
    _run_hydra(["-m", *flags, *parsed.overrides, sweep_dir, *NO_HYDRA_FILES], job)
    if preempted:
        raise preempted[0]
    if failed:
        sys.stderr.write(f"dglpipe: jobs {failed} failed\n")
    return 1 if failed else 0


def _run_hydra(arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Runs Hydra's own command line, which calls `job` with each composed configuration."""
    import hydra

    sys.argv = ["dglpipe train", *arguments]
    main: Any = hydra.main(f"pkg://{CONFIG_MODULE}", "config", version_base="1.3")
    main(job)()


def _parse(tree: DictConfig) -> Config:
    from dglpipe.cli.compose import to_plain
    from dglpipe.config import parse

    return parse(to_plain(tree))
