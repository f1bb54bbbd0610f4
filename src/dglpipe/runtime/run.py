"""One training run on this machine, from a configuration to its summary."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from dglpipe.config import Config, to_yaml
from dglpipe.errors import UserError
from dglpipe.files import write_whole
from dglpipe.host import cores
from dglpipe.methods.run_plan import RunPlan
from dglpipe.runtime.launcher import launch
from dglpipe.runtime.own_runs import record_own
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.resume import check_same, read_config, with_cut_of_resumed_run
from dglpipe.runtime.run_dir import RunDir, default_path


def train(config: Config) -> dict[str, Any]:
    """Checks `config`, starts its processes on this machine, and waits for them.

    Args:
        config: the configuration; not modified.

    Returns:
        The summary.

    Raises:
        UserError: an error in the user's input; nothing was trained.
        RunFailedError: a process failed.
    """
    layout = plan_layout(config.pipeline, config.method, cores())
    plan = make_plan(with_cut_of_resumed_run(config, layout), layout)
    run_dir = choose_run_dir(config)
    run_dir.check(config.resume)
    is_new = run_dir.status() is None
    with run_dir.claim(config.resume):
        plan = settle(plan, run_dir)
        try:
            return launch(plan, run_dir)
        except UserError:
            if is_new:
                run_dir.discard()
            raise


def choose_run_dir(config: Config) -> RunDir:
    """The directory that `config` names, or a new directory."""
    return RunDir(Path(config.run_dir) if config.run_dir else default_path())


def settle(plan: RunPlan, run_dir: RunDir) -> RunPlan:
    """Compares the configuration with the resumed run, if any, and writes it to `run_dir`.

    Returns:
        The plan with the run directory in its configuration.
    """
    plan = in_run_dir(plan, run_dir)
    if run_dir.config.is_file():
        check_same(read_config(run_dir), plan.config)
    run_dir.forget_end()
    text = to_yaml(plan.config)
    record_own(plan.config, text)
    write_whole(run_dir.config, text)
    return plan


def in_run_dir(plan: RunPlan, run_dir: RunDir) -> RunPlan:
    """`plan` with `run_dir` in its configuration."""
    return replace(plan, config=replace(plan.config, run_dir=os.fspath(run_dir.path)))
